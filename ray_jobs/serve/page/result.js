// Shows an answer of the server: what speaks against it first, then what it says.

import { $, count, element, lineSample, sentence, shares, signed } from "./dom.js";
import { risesOf, timeline } from "./chart.js";
import { heatmap } from "./heatmap.js";
import { forgetClip, seek, showClip } from "./player.js";

const NOTHING_ROSE = "No action unit rose over its usual level.";
let charts = [];

// `model` gives what is known of a model by its name.
export function showAnswers(answer, file, model) {
  const answers = [answer, ...answer.others];
  $("answers").hidden = answers.length < 2;
  $("answers").replaceChildren(element("legend", "Model"), ...answers.map((one, at) => {
    const [label, radio] = [element("label"), element("input")];
    Object.assign(radio, { type: "radio", name: "answer", checked: !at, value: one.model });
    radio.addEventListener("change", () => showAnswer(one, file, model(one.model)));
    label.append(radio, ` ${one.model}: ${one.label}`);
    return label;
  }));
  $("result").hidden = false;
  showAnswer(answer, file, model(answer.model));
  $("result").focus({ preventScroll: true });
  $("result").scrollIntoView({ block: "start" });
}

export function hideAnswers() {
  for (const chart of charts) chart.stop();
  charts = [];
  forgetClip();
  $("player").removeAttribute("src");
  $("result").hidden = true;
}

function showAnswer(answer, file, model) {
  for (const chart of charts) chart.stop();
  charts = [];
  showClip(file, answer, (seconds) => charts.forEach((chart) => chart.setTime(seconds)));
  warn(answer);
  $("for-whom").textContent = forWhom(answer);
  $("label").textContent = answer.label;
  const before = answer.before;
  $("probabilities").replaceChildren(...shares(answer.probabilities, answer.label, before?.probabilities));
  $("without").hidden = !before;
  $("without").textContent = before ? `Without ${changed(answer)}: ${before.label ?? "no label"}` : "";
  $("moment").textContent = `The answer rests on ${answer.window_start_seconds.toFixed(2)} to `
    + `${answer.window_end_seconds.toFixed(2)} s, where the model is surest.`;
  $("facts").textContent = facts(answer, model);
  showUnits(answer);
  $("numbers").open = false;
  $("numbers").ontoggle = () => { if ($("numbers").open) fillNumbers(answer); };
  charts = [heatmap($("heatmap"), $("readout"), answer, seek), timeline($("timeline"), answer, seek)];
  charts.forEach((chart) => chart.setTime(0));
}

function warn({ warnings }) {
  $("warnings").hidden = !warnings.length;
  $("warnings").replaceChildren(...warnings.map((words) => element("li", sentence(words))));
}

function forWhom({ model, personalized_for: subject, adapt }) {
  const whom = subject ? `personalized for ${subject}` : "not personalized";
  const how = { none: "", per_video: ", tuned to this clip", online: ", tuned to this clip and those before it" }[adapt];
  return sentence(`Model ${model}, ${whom}${how}`);
}

// What the answer without it lacks.
function changed({ personalized_for: subject }) {
  return subject ? "personalization" : "adaptation";
}

function facts({ seconds, timings, checkpoint, decoder }, { backbone }) {
  const parts = Object.entries(timings).filter(([name]) => name !== "batch_videos" && timings[name] >= 0.005);
  const spent = parts.map(([name, time]) => `${name} ${time.toFixed(2)}`).join(", ");
  const others = timings.batch_videos > 1 ? `, together with ${count(timings.batch_videos - 1, "other video")}` : "";
  return `Answered in ${seconds.toFixed(2)} s${others} (seconds: ${spent}). `
    + `Checkpoint ${checkpoint}, backbone ${backbone}, decoder ${decoder}.`;
}

function showUnits(answer) {
  const { codes, not_learned: left, time_seconds: times } = answer.action_units;
  $("moved").textContent = times.length < 2
    ? "The clip is a single moment, so nothing in it can rise over anything else."
    : "How much better each description fits in the chosen moment than it usually does in this clip, strongest first. The fit "
      + "is what CLIP sees (cosine of picture and words); it does not measure muscles.";
  if (left.length) {
    $("moved").textContent += ` Left out: ${left.length} of ${Object.keys(codes).length} action units, which the backbone never learned.`;
  }
  const before = answer.before;
  $("units-title").hidden = !before;
  $("units-title").textContent = `With ${changed(answer)}`;
  $("before-title").textContent = `Without ${changed(answer)}`;
  fillUnits($("units"), answer.top_action_units, true);
  $("units-before").hidden = !before;
  if (before) fillUnits($("units-before-list"), before.top_action_units, false);
}

function fillUnits(list, units, drawn) {
  const nothing = element("li", NOTHING_ROSE, "nothing");
  list.replaceChildren(...(units.length ? units.map((one, at) => unit(one, at, drawn)) : [nothing]));
}

function unit({ code, name, phrase, rise }, index, drawn) {
  const item = element("li");
  const words = element("span", phrase);
  words.append(" ", element("span", code === name ? code : `${code}, ${name}`, "soft small"));
  item.append(lineSample(drawn ? index : null), words, element("span", signed(rise), "number"));
  return item;
}

function fillNumbers(answer) {
  const rises = risesOf(answer);
  const head = element("tr");
  const titles = ["second", ...rises.map(({ code }) => `${answer.action_units.names[code]}, rise`), "entropy, nats"];
  head.append(...titles.map((text) => element("th", text)));
  const rows = answer.action_units.time_seconds.map((time, at) => {
    const row = element("tr");
    const cells = [time.toFixed(2), ...rises.map(({ values }) => signed(values[at])), answer.entropy[at].toFixed(3)];
    row.append(...cells.map((text) => element("td", text)));
    return row;
  });
  $("numbers").querySelector("table").replaceChildren(head, ...rows);
}
