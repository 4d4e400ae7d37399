// All action units over the clip, as colours: how far each is above or below its usual level. Mouse and keyboard go there.

import { element, median, move, node, shorten, signed, timeAxis } from "./dom.js";
import { LEFT, NARROW, endOf, innerWidth, stepOf, ticks } from "./chart.js";

const ROW = 15, TOP = 4, AXIS = 22, COLUMNS = 480;

// Rows of the map: what the backbone learned, in the order of FACS, then what it did not.
function rowsOf(answer) {
  const { codes, names, not_learned: left } = answer.action_units;
  const rows = Object.entries(codes).map(([code, values]) => {
    const usual = median(values);
    return { code, name: names[code], learned: !left.includes(code), values, rises: values.map((value) => value - usual) };
  });
  return rows.sort((a, b) => Number(b.learned) - Number(a.learned));
}

// The rise that gets the full colour: nearly the largest, so that one outlier does not fade all others.
function strongest(rows) {
  const all = rows.filter(({ learned }) => learned).flatMap(({ rises }) => rises.map(Math.abs)).sort((a, b) => a - b);
  return Math.max(0.005, all[Math.floor(0.99 * (all.length - 1))] ?? 0);
}

// Draws into `container`, again for another width or other colours. `seek(seconds)` is called where somebody goes.
export function heatmap(container, readout, answer, seek) {
  const rows = rowsOf(answer), times = answer.action_units.time_seconds;
  const map = { rows, times, end: endOf(answer), full: strongest(rows), row: 0, at: 0, time: 0, x: () => 0 };
  map.at = nearest(times, (answer.window_start_seconds + answer.window_end_seconds) / 2);
  const draw = () => {
    render(container, map, answer);
    mark(map);
  };
  const go = (row, at) => {
    map.row = Math.min(rows.length - 1, Math.max(0, row));
    map.at = Math.min(times.length - 1, Math.max(0, at));
    tell(container, readout, map);
    mark(map);
  };
  listen(container, map, go, seek);
  const observer = new ResizeObserver(draw);
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  observer.observe(container);
  scheme.addEventListener("change", draw);
  draw();
  go(0, map.at);
  return {
    setTime: (seconds) => { map.time = Math.min(seconds, map.end); mark(map); },
    stop: () => { observer.disconnect(); scheme.removeEventListener("change", draw); map.listening.abort(); },
  };
}

export function nearest(times, seconds) {
  let best = 0;
  times.forEach((time, at) => { if (Math.abs(time - seconds) < Math.abs(times[best] - seconds)) best = at; });
  return best;
}

function render(container, map, answer) {
  const width = container.clientWidth || 640, inner = innerWidth(width), floor = TOP + ROW * map.rows.length;
  const x = (seconds) => LEFT + (inner * seconds) / map.end;
  const svg = node("svg", { viewBox: `0 0 ${width} ${floor + AXIS}`, height: floor + AXIS, "aria-hidden": "true" });
  const box = { x: LEFT, y: TOP, width: inner, height: floor - TOP };
  svg.append(node("rect", { class: "ground", ...box }));
  svg.append(node("image", { href: picture(container, map), preserveAspectRatio: "none", class: "cells", ...box }));
  map.rows.forEach(({ code, name, learned }, index) => {
    const text = width < NARROW ? code : shorten(name, 27);
    const y = TOP + ROW * (index + 0.75);
    svg.append(node("text", { class: learned ? "unit" : "unit faint", x: LEFT + inner + 6, y }, text));
  });
  timeAxis(svg, ticks(0, map.end, Math.min(8, inner / 70)), x, floor + 16);
  const from = x(answer.window_start_seconds);
  const span = Math.max(2, x(answer.window_end_seconds) - from);
  svg.append(node("rect", { class: "chosen", x: from, y: TOP - 1, width: span, height: floor - TOP + 2 }));
  const playhead = node("line", { class: "playhead", y1: TOP, y2: floor });
  const cell = node("rect", { class: "cell", height: ROW, width: 8 });
  svg.append(playhead, cell);
  container.replaceChildren(svg);
  Object.assign(map, { x, playhead, cell, width, inner });
}

// The cells as a picture of a column per moment and a row per action unit, which the chart stretches.
function picture(container, { rows, times, end, full }) {
  const canvas = element("canvas");
  canvas.width = COLUMNS;
  canvas.height = rows.length;
  const style = getComputedStyle(container);
  const [above, below] = ["--above", "--below"].map((name) => channels(style.getPropertyValue(name)));
  const context = canvas.getContext("2d"), image = context.createImageData(COLUMNS, rows.length);
  const reach = 0.51 * stepOf(times) + end / COLUMNS;
  for (let column = 0; column < COLUMNS; column += 1) {
    const seconds = (end * (column + 0.5)) / COLUMNS, at = nearest(times, seconds);
    if (Math.abs(times[at] - seconds) > reach) continue; // No window counts here: the ground shows through.
    rows.forEach(({ rises, learned }, row) => {
      const share = Math.min(1, Math.abs(rises[at]) / full) ** 0.8 * (learned ? 1 : 0.3);
      image.data.set([...(rises[at] > 0 ? above : below), 255 * share], 4 * (row * COLUMNS + column));
    });
  }
  context.putImageData(image, 0, 0);
  return canvas.toDataURL();
}

function channels(colour) {
  const digits = colour.trim().slice(1);
  return [0, 2, 4].map((at) => parseInt(digits.slice(at, at + 2), 16));
}

function mark(map) {
  const at = map.x(map.time), step = Math.max(4, map.x(stepOf(map.times)) - LEFT);
  move(map.playhead, { x1: at, x2: at });
  move(map.cell, { x: map.x(map.times[map.at]) - step / 2, y: TOP + ROW * map.row, width: step });
}

function tell(container, readout, { rows, times, row, at, end }) {
  const { name, learned, rises, values } = rows[row];
  const rise = `${signed(rises[at])} to its usual level, similarity ${values[at].toFixed(3).replace("-", "−")}`;
  const words = `${times[at].toFixed(2)} s, ${name}: ${rise}${learned ? "" : "; the backbone never learned it"}`;
  readout.textContent = words;
  container.setAttribute("aria-valuemax", end.toFixed(2));
  container.setAttribute("aria-valuenow", times[at].toFixed(2));
  container.setAttribute("aria-valuetext", words);
}

function listen(container, map, go, seek) {
  map.listening = new AbortController();
  const { signal } = map.listening;
  const place = (event) => {
    const box = container.getBoundingClientRect();
    const seconds = (((event.clientX - box.left - LEFT) / map.inner) * map.end);
    return [Math.floor((event.clientY - box.top - TOP) / ROW), Math.min(map.end, Math.max(0, seconds))];
  };
  container.addEventListener("pointermove", (event) => {
    const [row, seconds] = place(event);
    go(row, nearest(map.times, seconds));
  }, { signal });
  container.addEventListener("click", (event) => {
    const [row, seconds] = place(event);
    go(row, nearest(map.times, seconds));
    seek(seconds);
  }, { signal });
  container.addEventListener("keydown", (event) => {
    const last = map.times.length - 1;
    const target = {
      ArrowLeft: [map.row, map.at - 1], ArrowRight: [map.row, map.at + 1],
      ArrowUp: [map.row - 1, map.at], ArrowDown: [map.row + 1, map.at],
      PageUp: [map.row, map.at - 5], PageDown: [map.row, map.at + 5], Home: [map.row, 0], End: [map.row, last],
    }[event.key];
    if (!target || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    go(...target);
    seek(map.times[map.at]);
  }, { signal });
}
