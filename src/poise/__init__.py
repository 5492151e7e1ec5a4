"""poise: from noise to poise. Diffusion models and diffusion policies for robots."""
