"use strict";
// Shows /state twice a second. What clients name themselves is only ever set as text.

const EVERY = 500; // ms between two looks
const DIMENSIONS = 12; // plots of a robot
const WIDTH = 400, HEIGHT = 100, EDGE = 8;
const byId = (id) => document.getElementById(id);
const ranges = new Map(); // of each plot, so that its scale rests
let seen = null; // when the server last answered

function svg(name, attributes, parent) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent.append(element);
  return element;
}

function html(name, text, parent, kind) {
  const element = document.createElement(name);
  element.textContent = text;
  if (kind) element.className = kind;
  parent.append(element);
  return element;
}

function number(value, digits = 3) {
  if (value === null) return "–";
  const shown = value !== 0 && Math.abs(value) < 1000 ? Number(value.toPrecision(digits)) : Math.round(value);
  return shown.toLocaleString("en", { maximumFractionDigits: 6 }).replaceAll(",", "\u202f").replace("-", "−");
}

function duration(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  return `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
}

const line = (points) => points.map(([x, y], k) => `${k ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

function figures(state) {
  const { counts, latency } = state;
  const { rejected, ...limits } = state.interventions;
  const batch = state.batch.slice(-60);
  const rows = [
    ["median latency", number(latency.median), "ms"],
    ["95th percentile", number(latency.p95), "ms"],
    ["plans a second", number(state.rate), ""],
    ["robots a batch", batch.length ? number(batch.reduce((a, b) => a + b) / batch.length) : "–", ""],
    ["connections", number(state.connections), ""],
    ["superseded", number(counts.superseded), "", "quiet"],
    ["actions changed", number(state.changed), "", "quiet"],
    ...Object.entries(limits).map(([kind, count]) => [`beyond ${kind}`, number(count), "", "quiet"]),
    ["plans rejected", number(rejected), "", "alarm"],
    ["refused", number(counts.connections_refused), "", "quiet"],
    ["errors", number(counts.errors), "", "alarm"],
  ];
  const list = byId("figures");
  list.replaceChildren();
  for (const [name, value, unit, kind] of rows) {
    const box = html("div", "", list);
    html("dt", name, box);
    const none = value === "–" || (kind && value === "0");
    const cell = html("dd", value, box, none ? "none" : kind);
    if (unit && !none) html("span", unit, cell);
  }
}

function spark(id, values, high) {
  const plot = byId(id);
  plot.replaceChildren();
  plot.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  plot.setAttribute("preserveAspectRatio", "none");
  if (values.length < 2) return;
  // A peak may leave the picture: the caption tells it, and the rest stays readable.
  const top = 1.05 * Math.max(Math.min(Math.max(...values), high === null ? Infinity : 4 * high), 1e-9);
  const at = values.map((value, k) => [(k / (values.length - 1)) * WIDTH, HEIGHT * (1 - value / top)]);
  svg("path", { class: "area", d: `${line(at)}L${WIDTH} ${HEIGHT}L0 ${HEIGHT}Z` }, plot);
  if (high !== null) {
    const y = HEIGHT * (1 - high / top);
    svg("line", { class: "high", x1: 0, x2: WIDTH, y1: y, y2: y }, plot);
  }
  svg("path", { class: "total", d: line(at) }, plot);
}

function range(key, values) {
  let [low, high] = [Math.min(...values), Math.max(...values)];
  const before = ranges.get(key);
  if (before) { // grows at once, and shrinks slowly
    low = Math.min(low, before[0] + 0.03 * (low - before[0]));
    high = Math.max(high, before[1] + 0.03 * (high - before[1]));
  }
  ranges.set(key, [low, high]);
  return high - low > 1e-9 ? [low, high] : [low - 0.5, high + 0.5];
}

function plot(parent, key, plans, dimension, execute) {
  const figure = html("figure", "", parent);
  const [low, high] = range(`${key}/${dimension}`, plans.flatMap((plan) => plan.map((action) => action[dimension])));
  const caption = html("figcaption", "", figure);
  html("span", `action ${dimension}`, caption);
  html("span", `${number(low, 2)} to ${number(high, 2)}`, caption);
  const area = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" }, figure);
  area.setAttribute("aria-label", `Last plans of action ${dimension}`);
  const length = Math.max((plans.length - 1) * execute + plans.at(-1).length - 1, 1);
  const x = (step) => EDGE + (step / length) * (WIDTH - 2 * EDGE);
  const y = (value) => HEIGHT - EDGE - ((value - low) / (high - low)) * (HEIGHT - 2 * EDGE);
  if (low < 0 && high > 0) svg("line", { class: "zero", x1: 0, x2: WIDTH, y1: y(0), y2: y(0) }, area);
  const now = x((plans.length - 1) * execute);
  svg("line", { class: "now", x1: now, x2: now, y1: 0, y2: HEIGHT }, area);
  plans.forEach((plan, k) => {
    const at = plan.map((action, step) => [x(k * execute + step), y(action[dimension])]);
    if (k === plans.length - 1) {
      svg("path", { class: "new", d: line(at) }, area);
    } else {
      svg("path", { class: "tail", d: line(at.slice(execute)) }, area);
      svg("path", { class: "done", d: line(at.slice(0, execute + 1)) }, area);
    }
  });
}

function robots(state) {
  const parent = byId("robots");
  parent.replaceChildren();
  const keys = new Set();
  for (const robot of state.robots) {
    const key = JSON.stringify([robot.client, robot.robot, robot.episode]);
    keys.add(key);
    const article = html("article", "", parent, robot.silent > 5 ? "silent" : "");
    const head = html("header", "", article);
    html("h2", robot.robot === null ? `Connection ${robot.client}` : `Connection ${robot.client}, robot ${robot.robot}`, head);
    const changed = robot.changed ? `, ${number(robot.changed)} actions changed` : "";
    const silent = robot.silent > 5 ? `, silent for ${duration(robot.silent)}` : "";
    html("p", `episode ${robot.episode}, plan ${robot.plan}${changed}${silent}`, head);
    const size = robot.plans[0][0].length;
    const plots = html("div", "", article, size < 4 ? "plots few" : "plots");
    for (let k = 0; k < Math.min(size, DIMENSIONS); k += 1) plot(plots, key, robot.plans, k, state.execute);
    if (size > DIMENSIONS) html("p", `and ${size - DIMENSIONS} more dimensions`, article);
  }
  for (const key of ranges.keys()) if (!keys.has(key.slice(0, key.lastIndexOf("/")))) ranges.delete(key);
}

function show(state) {
  byId("about").textContent =
    `${state.policy}, plans of ${state.planned} actions, ${number(state.counts.plans)} so far, ` +
    `up for ${duration(state.seconds)}`;
  byId("execute").textContent = state.execute;
  figures(state);
  const total = state.infer_ms.map((value, k) => value + state.queue_ms[k]);
  spark("latency", total, state.latency.p95);
  spark("batch", state.batch, null);
  byId("latency-note").textContent = total.length
    ? `of the last ${total.length} plans, up to ${number(Math.max(...total))} ms` : "";
  byId("batch-note").textContent = total.length ? `up to ${Math.max(...state.batch)}` : "";
  robots(state);
  byId("empty").hidden = state.robots.length > 0;
  byId("hidden").hidden = state.hidden === 0;
  byId("hidden").textContent = `and ${state.hidden} more robots`;
}

function lose(reason) {
  const since = seen === null ? "" : ` for ${duration((Date.now() - seen) / 1000)}`;
  byId("lost").textContent = `The server does not answer${since}: ${reason}`;
}

async function look() {
  let reason = null;
  try {
    const reply = await fetch("state", { signal: AbortSignal.timeout(5000) });
    if (!reply.ok) throw new Error(`HTTP status ${reply.status}`);
    show(await reply.json());
    seen = Date.now();
  } catch (error) {
    reason = error.message;
    lose(reason);
  }
  byId("lost").hidden = reason === null;
  document.body.classList.toggle("lost", reason !== null);
  setTimeout(look, EVERY);
}

byId("address").textContent = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}`;
look();
