// The page: a file goes in, the server's answer is shown. All text is set as text, never as HTML.

import { node, risesOf, signed, timeline } from "./chart.js";

const $ = (id) => document.getElementById(id);
const form = $("form"), input = $("video"), player = $("player"), result = $("result");
let limits = null, address = null, chart = null, stopAt = null, answer = null, busy = false, served = "";

function element(name, text = "", classes = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = classes;
  return made;
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer, or refused the file while it arrived. Is `clipautt serve` still running?");
  }
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(body.detail || `The server answered with status ${response.status}.`);
  return body;
}

function fail(message) {
  $("error").textContent = message.charAt(0).toUpperCase() + message.slice(1);
  $("error").hidden = !message;
}

async function welcome() {
  const [health, { subjects }] = await Promise.all([ask("healthz"), ask("v1/subjects")]);
  limits = health.limits;
  $("limits").textContent = `One face that fills most of the picture; at most ${limits.max_seconds} seconds `
    + `and ${size(limits.max_bytes)}`;
  const seen = Object.entries(health.trained_on).map(([part, footage]) => `${part}: ${footage}`);
  $("trained-on").textContent = `Trained on: ${seen.join("; ")}. What it says about footage of another kind means nothing.`;
  $("subjects").replaceChildren(...subjects.map((id) => Object.assign(document.createElement("option"), { value: id })));
  $("subject-hint").textContent = subjects.length
    ? `(optional; ${subjects.length} with adapted prompts)` : "(no subject has adapted prompts yet)";
  served = `checkpoint ${health.checkpoint}, backbone ${health.backbone}`;
}

function size(bytes) {
  return bytes < 1e5 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

function chosen() {
  fail("");
  const [file] = input.files;
  $("chosen").textContent = file ? `${file.name} (${size(file.size)})` : "Choose a video, or drop it here";
  result.hidden = true;
}

async function predict(event) {
  event.preventDefault();
  if (busy) return;
  fail("");
  const [file] = input.files;
  if (!file) return fail("Choose a video first.");
  if (limits && file.size > limits.max_bytes) {
    return fail(`The file is too large; at most ${size(limits.max_bytes)} are allowed.`);
  }
  const data = new FormData();
  data.append("video", file);
  const subject = $("subject").value.trim();
  if (subject) data.append("subject_id", subject);
  work(true);
  result.hidden = true;
  try {
    show(await ask("v1/predict", { method: "POST", body: data }), file);
  } catch (error) {
    fail(error.message);
  } finally {
    work(false);
  }
}

// The button stays enabled: a button that is disabled loses the keyboard's focus.
function work(begins) {
  busy = begins;
  $("predict").setAttribute("aria-disabled", begins);
  $("status").textContent = begins ? "Looking at the video…" : "";
}

function show(given, file) {
  answer = given;
  if (address) URL.revokeObjectURL(address);
  address = URL.createObjectURL(file);
  player.src = address;
  stopAt = null;
  $("unplayable").hidden = true;
  $("replay").hidden = player.hidden = false;
  $("label").textContent = answer.label;
  $("warnings").replaceChildren(...answer.warnings.map((sentence) => element("li", sentence)));
  $("warnings").hidden = !answer.warnings.length;
  $("for-whom").textContent = answer.personalized_for
    ? `Personalized for ${answer.personalized_for}` : "Not personalized";
  $("probabilities").replaceChildren(...Object.entries(answer.probabilities).flatMap(([name, value]) => share(name, value, name === answer.label)));
  $("moment").textContent = `The answer rests on ${answer.window_start_seconds.toFixed(2)} to `
    + `${answer.window_end_seconds.toFixed(2)} s, where the model is surest.`;
  $("facts").textContent = `Answered in ${answer.seconds.toFixed(1)} s by ${served}.`;
  const single = answer.action_units.time_seconds.length < 2;
  $("moved").textContent = single
    ? "The clip is a single moment, so nothing in it rises over anything else."
    : "How much better each description fits than it usually does in this clip, strongest first. The fit is what CLIP sees "
      + "(cosine of picture and words); it does not measure muscles.";
  const left = answer.action_units.not_learned.length;
  if (left) {
    const all = Object.keys(answer.action_units.codes).length;
    $("moved").textContent += ` Left out: ${left} of ${all} action units, which the backbone never learned.`;
  }
  $("units").replaceChildren(...answer.top_action_units.map(unit));
  $("numbers").open = false;
  result.hidden = false;
  if (chart) chart.stop();
  chart = timeline($("timeline"), answer, (seconds) => { stopAt = null; player.currentTime = seconds; chart.setTime(seconds); });
  chart.setTime(0);
  result.focus({ preventScroll: true });
  result.scrollIntoView({ block: "nearest" });
}

function share(name, value, top) {
  const bar = element("dd", "", top ? "bar top" : "bar");
  const filled = element("i");
  filled.style.width = `${100 * value}%`;
  bar.append(filled);
  return [element("dt", name), bar, element("dd", `${(100 * value).toFixed(1)} %`, "number")];
}

function unit({ code, name, phrase, rise }, index) {
  const item = element("li");
  const sample = node("svg", { viewBox: "0 0 28 10", "aria-hidden": "true" });
  sample.append(node("line", { class: `series s${index}`, x1: 0, x2: 28, y1: 5, y2: 5 }));
  const words = element("span", phrase);
  words.append(" ", element("span", code === name ? code : `${code}, ${name}`, "soft small"));
  item.append(sample, words, element("span", signed(rise), "number"));
  return item;
}

function fillNumbers() {
  const rises = risesOf(answer);
  const head = element("tr");
  head.append(...["second", ...rises.map(({ code }) => `${answer.action_units.names[code]}, rise`), "entropy, nats"].map((text) => element("th", text)));
  const rows = answer.action_units.time_seconds.map((time, at) => {
    const row = element("tr");
    const cells = [time.toFixed(2), ...rises.map(({ values }) => signed(values[at])), answer.entropy[at].toFixed(3)];
    row.append(...cells.map((text) => element("td", text)));
    return row;
  });
  $("numbers").querySelector("table").replaceChildren(head, ...rows);
}

function replay() {
  player.currentTime = answer.window_start_seconds;
  stopAt = answer.window_end_seconds;
  player.play().catch(() => {});
}

function follow() {
  if (chart) chart.setTime(player.currentTime);
  if (stopAt !== null && player.currentTime >= stopAt) {
    stopAt = null;
    player.pause();
  }
  if (!player.paused) requestAnimationFrame(follow);
}

for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault(); // Else the browser would leave the page and open the file.
    $("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) {
      input.files = event.dataTransfer.files;
      chosen();
    }
  });
}
form.addEventListener("submit", predict);
input.addEventListener("change", chosen);
player.addEventListener("play", follow);
player.addEventListener("timeupdate", follow);
player.addEventListener("error", () => {
  if (!address) return;
  $("unplayable").hidden = false;
  $("replay").hidden = player.hidden = true;
});
$("replay").addEventListener("click", replay);
$("numbers").addEventListener("toggle", () => { if ($("numbers").open) fillNumbers(); });
welcome().catch((error) => fail(error.message));
