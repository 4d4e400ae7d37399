// People with a personalization: choose one, personalize with a clip, and forget.

import { $, count, element, rest, rests, sentence } from "./dom.js";
import { ask, pause, Problem, send, subjectPath } from "./ask.js";

const NEW = "\u0000new"; // No name can be this.
const known = { ids: [], allowed: true, subject: null, clip: () => null, failed: () => {}, turn: 0 };

// `clip()` gives the chosen file, `failed(problem)` tells the person what went wrong.
export function listenToSubjects({ clip, failed }) {
  Object.assign(known, { clip, failed });
  $("who").addEventListener("change", () => { tell(""); changed(true); });
  $("subject").addEventListener("input", () => { tell(""); changed(); });
  $("personalize").addEventListener("click", () => personalize().catch(failed));
  $("forget").addEventListener("click", () => confirming(true));
  $("forget-no").addEventListener("click", () => confirming(false));
  $("forget-yes").addEventListener("click", () => erase().catch(failed));
  $("forgetting").addEventListener("keydown", (event) => { if (event.key === "Escape") confirming(false); });
}

export async function loadSubjects() {
  try {
    known.ids = (await ask("v1/subjects")).subjects;
    known.allowed = true;
  } catch (problem) {
    if (problem.code !== "key_scope") throw problem;
    known.allowed = false;
  }
  const chosen = chosenSubject(), somebody = $("who").value === NEW ? NEW : "";
  $("who").replaceChildren(new Option("Nobody in particular", ""), new Option("Someone new…", NEW),
    ...known.ids.map((id) => new Option(id, id)));
  $("who").value = known.ids.includes(chosen) ? chosen : somebody;
  $("who-row").hidden = !known.allowed;
  await changed();
}

// The person that the clip shows, or "".
export function chosenSubject() {
  return $("who").value === NEW ? $("subject").value.trim() : $("who").value;
}

// The person whose prompts are to be used: "" for someone of whom nothing is stored yet.
export function storedSubject() {
  const chosen = chosenSubject();
  return known.ids.includes(chosen) ? chosen : "";
}

function chooseSubject(id) {
  $("who").value = known.ids.includes(id) ? id : NEW;
  $("subject").value = known.ids.includes(id) ? "" : id;
  return changed();
}

async function changed(focus = false) {
  const turn = known.turn += 1;
  confirming(false, false);
  $("new-row").hidden = $("who").value !== NEW;
  if (focus && $("who").value === NEW) $("subject").focus();
  const id = chosenSubject();
  $("person").hidden = !id;
  document.dispatchEvent(new CustomEvent("subjectchange"));
  if (!id) return;
  $("forget").hidden = !known.ids.includes(id);
  $("personalize").textContent = known.ids.includes(id) ? "Personalize again with this clip" : "Personalize with this clip";
  clipChanged();
  $("person-state").replaceChildren(element("li", "…"));
  const lines = known.ids.includes(id) ? await ask(subjectPath(id)).then(describe).catch(problemWords) : [NOTHING(id)];
  if (turn !== known.turn) return; // Somebody else was chosen meanwhile.
  $("person-state").replaceChildren(...lines.map((words) => element("li", words)));
}

const NOTHING = (id) => `Nothing is stored for ${id} yet. A clip of a few seconds with a resting face is enough to begin.`;

function problemWords(problem) {
  return [[problem.message, problem.help ?? ""].map(sentence).join(" ")];
}

function describe({ models, kept_clips: kept, made_by: maker, subject_id: id }) {
  const alike = new Map();
  for (const [name, { since, method, clips, frames, seconds, warnings }] of Object.entries(models)) {
    const basis = [count(clips, "clip"), frames === null ? "" : count(frames, "frame"), seconds === null ? "" : `${seconds.toFixed(1)} s`];
    const when = new Date(since);
    const day = Number.isNaN(when.getTime()) ? since : when.toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
    const said = [`personalized since ${day}, from ${basis.filter(Boolean).join(", ")} (method ${method}).`, ...warnings.map(sentence)].join(" ");
    alike.set(said, [...(alike.get(said) ?? []), name]);
  }
  const rows = [...alike].map(([said, names]) => `${id}, ${names.length > 1 ? "models" : "model"} ${names.join(", ")}: ${said}`);
  const origin = maker === "adapt" ? ["Made by the job clipautt adapt."] : [];
  return [...rows, ...origin, kept ? `${count(kept, "clip")} of ${id} ${kept === 1 ? "is" : "are"} kept.` : "No clip is kept."];
}

export function clipChanged() {
  const clip = known.clip();
  rest($("personalize"), !clip);
  $("personalize-hint").textContent = clip ? `The clip is ${clip.name}.` : "Record or choose a clip first.";
}

async function personalize() {
  const id = chosenSubject(), clip = known.clip();
  if (rests($("personalize"))) return;
  known.failed(null);
  const form = new FormData();
  form.append("video", clip, clip.name);
  form.append("keep", $("keep").checked ? "true" : "false");
  rest($("personalize"), true);
  tell("Sending the clip…", 0);
  try {
    const path = subjectPath(id);
    const job = await send("PUT", path, form, { told: (share) => tell(share < 1 ? "Sending the clip…" : "Received.", share) });
    await follow(job);
    await loadSubjects();
    await chooseSubject(id);
    tell(`Personalized for ${id}. From now on, predictions for ${id} use it.`);
  } catch (problem) {
    tell("");
    throw problem;
  } finally {
    clipChanged();
  }
}

async function follow(started) {
  let job = started;
  while (job.status === "waiting" || job.status === "running") {
    const words = job.status === "waiting" ? "Waiting for the worker…" : `Personalizing: ${job.done} of ${count(job.total, "clip")} read…`;
    tell(words, job.status === "waiting" ? undefined : Math.max(0.05, job.done / Math.max(1, job.total + 1)));
    await pause(0.5);
    job = await ask(`v1/jobs/${encodeURIComponent(job.job)}`).catch(async (problem) => {
      if (!problem.retry) throw problem;
      await pause(problem.retry); // The server is busy; the job goes on.
      return job;
    });
  }
  if (job.status === "failed") throw new Problem(job.error);
}

function confirming(begins, focus = true) {
  const open = !$("forgetting").hidden;
  $("forgetting").hidden = !begins;
  $("forget-question").textContent = `Erase everything that is stored for ${chosenSubject()}? This cannot be undone.`;
  if (!focus) return;
  if (begins) $("forget-no").focus();
  else if (open) $("forget").focus();
}

async function erase() {
  const id = chosenSubject();
  if (rests($("forget-yes"))) return;
  known.failed(null);
  rest($("forget-yes"), true);
  try {
    const { erased } = await ask(subjectPath(id), { method: "DELETE" });
    known.ids = known.ids.filter((one) => one !== id);
    await loadSubjects();
    await chooseSubject(id);
    tell(`Forgotten. Erased: ${erased.join(", ")}. The next prediction for ${id} is not personalized.`);
    $("who").focus();
  } finally {
    rest($("forget-yes"), false);
    confirming(false, false);
  }
}

// What is going on, with a bar where its share is known.
function tell(words, share) {
  $("person-progress").hidden = share === undefined;
  if (share !== undefined) $("person-progress").value = share;
  $("person-status").textContent = words;
}
