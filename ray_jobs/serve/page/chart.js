// The timeline: rise of the leading action units over the clip, and below it the model's entropy. Independent of the page.

import { median, node, shorten, signed, timeAxis } from "./dom.js";

export const LEFT = 40, RIGHT = 180, NARROW = 560;
const TOP = 10, UPPER = 190, GAP = 16, LOWER = 56, AXIS = 24;

// Curves of the top action units, each minus its median over the clip: what the server calls the rise.
export function risesOf(answer) {
  return answer.top_action_units.map(({ code }) => {
    const values = answer.action_units.codes[code];
    const usual = median(values);
    return { code, values: values.map((value) => value - usual) };
  });
}

// Draws into `container`, again whenever its width changes. `seek(seconds)` is called for clicks.
export function timeline(container, answer, seek) {
  const state = { time: 0, playhead: null, x: () => 0 };
  const draw = () => {
    const drawn = render(answer, container.clientWidth || 640, seek);
    container.replaceChildren(drawn.svg);
    Object.assign(state, drawn);
    setTime(state.time);
  };
  const setTime = (seconds) => {
    state.time = seconds;
    const at = state.x(Math.min(seconds, state.end));
    state.playhead.setAttribute("x1", at);
    state.playhead.setAttribute("x2", at);
  };
  const observer = new ResizeObserver(draw);
  observer.observe(container);
  draw();
  return { setTime, stop: () => observer.disconnect() };
}

function render(answer, width, seek) {
  const times = answer.action_units.time_seconds;
  const rises = risesOf(answer);
  const end = endOf(answer);
  const highest = Math.max(0.01, ...rises.flatMap((curve) => curve.values));
  const lowest = Math.min(0, ...rises.flatMap((curve) => curve.values));
  const most = Math.log(Math.max(2, Object.keys(answer.probabilities).length));
  const wide = width >= NARROW; // On a narrow screen the codes stand alone; the list above the chart has their names.
  const inner = innerWidth(width);
  const upper = rises.length ? UPPER : 0, gap = rises.length ? GAP : 4; // Where nothing rose, the entropy stands alone.
  const floor = TOP + upper + gap + LOWER;
  const x = (seconds) => LEFT + (inner * seconds) / end;
  const y = (rise) => TOP + upper * (1 - (rise - lowest) / (highest - lowest));
  const z = (entropy) => floor - LOWER * Math.min(1, entropy / most);

  const svg = node("svg", { viewBox: `0 0 ${width} ${floor + AXIS}`, height: floor + AXIS, role: "img" });
  svg.setAttribute("aria-label", describe(answer));
  const from = x(answer.window_start_seconds);
  const span = Math.max(2, x(answer.window_end_seconds) - from);
  svg.append(node("rect", { class: "window", x: from, y: TOP, width: span, height: floor - TOP }));
  const levels = rises.length ? ticks(lowest, highest, 4) : [];
  const digits = levels.length > 1 && levels[1] - levels[0] < 0.099 ? 2 : 1;
  for (const tick of levels) {
    svg.append(node("line", { class: "axis", x1: LEFT, x2: LEFT + inner, y1: y(tick), y2: y(tick) }));
    svg.append(node("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, signed(tick, digits)));
  }
  for (const [level, word] of [[0, "sure"], [most, "unsure"]]) {
    svg.append(node("line", { class: "axis", x1: LEFT, x2: LEFT + inner, y1: z(level), y2: z(level) }));
    svg.append(node("text", { x: LEFT + inner + 6, y: z(level) + 4 }, word));
  }
  timeAxis(svg, ticks(0, end, Math.min(8, inner / 70)), x, floor + 17);
  svg.append(area(times, answer.entropy, x, z, floor));
  rises.forEach((curve, index) => svg.append(line(times, curve.values, x, y, index)));
  names(rises, y).forEach(({ code, index, at }) => {
    const text = wide ? answer.action_units.names[code] : code;
    svg.append(node("text", { class: `name s${index}`, x: LEFT + inner + 6, y: at + 4 }, shorten(text, 26)));
  });
  const playhead = node("line", { class: "playhead", y1: TOP, y2: floor });
  svg.append(playhead);
  svg.addEventListener("click", (event) => {
    const at = ((event.clientX - svg.getBoundingClientRect().left) * width) / svg.clientWidth;
    seek(Math.min(end, Math.max(0, ((at - LEFT) / inner) * end)));
  });
  return { svg, playhead, x, end };
}

// Seconds that the charts of an answer span.
export function endOf(answer) {
  const times = answer.action_units.time_seconds;
  return Math.max(answer.duration_seconds, answer.window_end_seconds, times[times.length - 1], 0.1);
}

// Pixels between the axis and the names, of a chart that is `width` wide.
export function innerWidth(width) {
  return Math.max(60, width - LEFT - (width >= NARROW ? RIGHT : 52));
}

// The usual distance of two windows, seconds.
export function stepOf(times) {
  return times.length > 1 ? median(times.slice(1).map((time, at) => time - times[at])) : 0.5;
}

function describe(answer) {
  const codes = answer.top_action_units.map(({ code }) => answer.action_units.names[code]).join(", ");
  const [from, to] = [answer.window_start_seconds, answer.window_end_seconds].map((seconds) => seconds.toFixed(1));
  return `Chart over time of the rise of ${codes} and of the model's entropy; the chosen moment is ${from} to ${to} seconds`;
}

// Points in pieces: where no window counts, as nobody is seen, there is a gap. A piece of one window is a dot.
function line(times, values, x, y, index) {
  const group = node("g");
  const far = 1.5 * stepOf(times);
  const pieces = [];
  times.forEach((time, at) => {
    if (!at || time - times[at - 1] > far) pieces.push([]);
    pieces[pieces.length - 1].push([x(time).toFixed(1), y(values[at]).toFixed(1)]);
  });
  for (const piece of pieces) {
    const [cx, cy] = piece[0];
    if (piece.length === 1) group.append(node("circle", { class: `series s${index}`, cx, cy, r: 3 }));
    else group.append(node("polyline", { class: `series s${index}`, points: piece.map((point) => point.join(",")).join(" ") }));
  }
  return group;
}

function area(times, values, x, z, floor) {
  const [first, last] = [x(times[0]) - (times.length === 1 ? 2 : 0), x(times[times.length - 1]) + (times.length === 1 ? 2 : 0)];
  const points = times.map((time, at) => `${x(time).toFixed(1)},${z(values[at]).toFixed(1)}`).join(" ");
  const top = times.length === 1 ? `${first},${z(values[0])} ${last},${z(values[0])}` : points;
  return node("polygon", { class: "entropy", points: `${first},${floor} ${top} ${last},${floor}` });
}

// Names beside the ends of the lines, pushed apart where they would overlap.
function names(rises, y) {
  const placed = rises
    .map((curve, index) => ({ code: curve.code, index, at: y(curve.values[curve.values.length - 1]) }))
    .sort((a, b) => a.at - b.at);
  placed.forEach((name, rank) => { if (rank) name.at = Math.max(name.at, placed[rank - 1].at + 14); });
  const over = placed.length ? placed[placed.length - 1].at - (TOP + UPPER) : 0;
  if (over > 0) placed.forEach((name) => { name.at -= over; });
  return placed;
}

export function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const found = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-9; tick += step) found.push(tick);
  return found;
}
