// The rolling chart of the live tab: the action units that moved most in the last seconds, each against its usual level.

import { $, element, lineSample, median, node, signed } from "./dom.js";

const SPAN = 20, SHOWN = 5;
const LEFT = 40, RIGHT = 8, TOP = 8, HEIGHT = 190, AXIS = 22;

// What was seen lately. `names`: code → code and name; `left`: codes that the backbone never learned.
export function rolling(names, left) {
  const seen = { moments: [], slots: [], base: null, usual: {}, chosenAt: -1 };
  return {
    add(seconds, similarities, rises) {
      if (!Object.keys(similarities).length) return; // No face is shown.
      seen.moments.push({ seconds, similarities });
      while (seen.moments[0].seconds < seconds - SPAN) seen.moments.shift();
      if (rises) seen.base = Object.fromEntries(Object.keys(rises).map((code) => [code, similarities[code] - rises[code]]));
      if (seconds - seen.chosenAt >= 1) choose(seen, seconds, left);
    },
    draw() { draw(seen, names); },
    clear() { Object.assign(seen, { moments: [], slots: [], base: null, usual: {}, chosenAt: -1 }); draw(seen, names); },
  };
}

// Whoever stays among the leaders keeps its colour.
function choose(seen, seconds, left) {
  seen.chosenAt = seconds;
  const codes = Object.keys(seen.base ?? seen.moments[seen.moments.length - 1].similarities).filter((code) => !left.includes(code));
  seen.usual = seen.base ?? Object.fromEntries(codes.map((code) => [code, median(seen.moments.map(({ similarities }) => similarities[code]))]));
  const height = (code) => Math.max(...seen.moments.map(({ similarities }) => similarities[code] - seen.usual[code]));
  const leaders = codes.map((code) => [height(code), code]).sort((a, b) => b[0] - a[0]).slice(0, SHOWN).map(([, code]) => code);
  const entering = leaders.filter((code) => !seen.slots.includes(code));
  for (let slot = 0; slot < SHOWN; slot += 1) {
    if (!leaders.includes(seen.slots[slot])) seen.slots[slot] = entering.shift();
  }
  seen.slots = seen.slots.filter(Boolean);
}

function draw(seen, names) {
  const container = $("live-chart"), width = container.clientWidth || 640, inner = width - LEFT - RIGHT;
  const svg = node("svg", { viewBox: `0 0 ${width} ${TOP + HEIGHT + AXIS}`, height: TOP + HEIGHT + AXIS, role: "img" });
  svg.setAttribute("aria-label", `Rolling chart of ${seen.slots.map((code) => names[code] ?? code).join(", ") || "nothing yet"}`);
  const now = seen.moments.length ? seen.moments[seen.moments.length - 1].seconds : 0;
  const curves = seen.slots.map((code) => seen.moments.map(({ similarities }) => similarities[code] - seen.usual[code]));
  const highest = Math.max(0.05, ...curves.flat()), lowest = Math.min(-0.02, ...curves.flat());
  const x = (seconds) => LEFT + inner * (1 - (now - seconds) / SPAN);
  const y = (rise) => TOP + HEIGHT * (1 - (rise - lowest) / (highest - lowest));
  for (const level of [0, highest / 2, highest]) {
    svg.append(node("line", { class: level ? "axis" : "axis zero", x1: LEFT, x2: width - RIGHT, y1: y(level), y2: y(level) }));
    svg.append(node("text", { x: LEFT - 6, y: y(level) + 4, "text-anchor": "end" }, signed(level, 2)));
  }
  for (const ago of [SPAN, SPAN / 2, 0]) {
    const anchor = { 0: "end", [SPAN]: "start" }[ago] ?? "middle";
    svg.append(node("text", { x: x(now - ago), y: TOP + HEIGHT + 16, "text-anchor": anchor }, ago ? `${ago} s ago` : "now"));
  }
  curves.forEach((curve, index) => {
    const points = curve.map((rise, at) => `${x(seen.moments[at].seconds).toFixed(1)},${y(rise).toFixed(1)}`).join(" ");
    svg.append(node("polyline", { class: `series s${index}`, points }));
  });
  container.replaceChildren(svg);
  legend(seen, names, curves);
}

function legend(seen, names, curves) {
  $("live-units").replaceChildren(...seen.slots.map((code, index) => {
    const item = element("li");
    item.append(lineSample(index), element("span", names[code] ?? code), element("span", signed(curves[index][curves[index].length - 1] ?? 0), "number"));
    return item;
  }));
}
