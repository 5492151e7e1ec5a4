"""The one description of a training."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingSpec:
    """How a policy is trained.

    Attributes:
        steps: Gradient steps.
        minutes: Wall-clock limit; the learning rate then falls along whichever of steps and minutes is nearer its end.
        batch: Windows a step, over all processes.
        accumulate: Parts that each process computes its share of a batch in, one after the other: less memory, the
            same gradient.
        learning_rate: Peak of AdamW's rate.
        weight_decay: Of AdamW.
        betas: Of AdamW.
        warmup: Steps of linear warm-up, before the half cosine to zero; 0 leaves it out.
        clip: Largest norm of the gradient.
        ema_power: Power of the averaging warm-up.
        ema_maximum: Largest decay of the average.
        mask_padding: Leave padded actions out of the loss. By default they count, and a policy learns to hold its last
            action at the end of an episode; what no window ever trains, a diffusion would fill at random.
        bfloat16: Run the network under bfloat16 autocast; parameters and sums stay float32. Where the device has no
            instructions for it, everything is float32, which is said in one line on stderr.
        compile: Compile encoder and network, which takes a minute and pays on accelerators.
        forgetful: Compute what the encoder did again for its gradient instead of keeping it, for an eighth of the batch
            at a time: a third more of its time, and far less memory for large batches of images.
        patience: Steps in a row whose loss or gradient is not finite, each of them skipped, that end the training.
        validate_every: Steps between validations.
        evaluate_every: Steps between closed-loop evaluations of the averaged policy; None leaves them out.
        episodes: Of such an evaluation, from seed 50000 on.
        save_every: Steps between checkpoints; one that is among the best is saved besides, when that is found out.
        keep_last: Newest checkpoints that are kept.
        keep_best: Best checkpoints that are kept besides, by success where there are evaluations, else by validation.
        seed: Of batches, noise and initialisation.

    Raises:
        ValueError: A count, a limit or a rate that is not positive, or negative where zero is allowed.
    """

    steps: int = 20_000
    minutes: float | None = None
    batch: int = 256
    accumulate: int = 1
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    warmup: int = 500
    clip: float = 1.0
    ema_power: float = 0.75
    ema_maximum: float = 0.9995
    mask_padding: bool = False
    bfloat16: bool = False
    compile: bool = False
    forgetful: bool = False
    patience: int = 10
    validate_every: int = 1000
    evaluate_every: int | None = None
    episodes: int = 50
    save_every: int = 5000
    keep_last: int = 2
    keep_best: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("steps", "batch", "accumulate", "patience", "validate_every", "evaluate_every", "episodes")
        for name in (*counts, "save_every", "keep_last"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"TrainingSpec got {name}={value}, expected at least 1")
        for name in ("warmup", "keep_best", "learning_rate"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"TrainingSpec got {name}={getattr(self, name)}, expected at least 0")
        for name in ("minutes", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"TrainingSpec got {name}={value}, expected more than 0")


__all__ = ["TrainingSpec"]
