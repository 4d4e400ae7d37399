// Lists what openapi.json says, so that it needs no other documentation page and no network.

import { $, element, sentence } from "./dom.js";

function nameOf(schema) {
  return schema?.$ref?.split("/").pop();
}

// What a value is, in words; a type with a name links to its description.
function kind(schema) {
  const name = nameOf(schema);
  if (name) return [Object.assign(element("a", name), { href: `#type-${name}` })];
  if (schema.anyOf) return schema.anyOf.flatMap((one, at) => [...(at ? [" or "] : []), ...kind(one)]);
  if (schema.format === "binary" || schema.contentMediaType) return ["file"];
  if (schema.type === "array") return ["list of ", ...kind(schema.items ?? {})];
  if (schema.additionalProperties) return ["text → ", ...kind(schema.additionalProperties)];
  if (schema.enum) return [schema.enum.join(" | ")];
  if (schema.const !== undefined) return [String(schema.const)];
  return [{ string: "text", integer: "whole number", boolean: "true or false" }[schema.type] ?? schema.type ?? "anything"];
}

function row(name, kinds, words) {
  const made = element("tr"), middle = element("td");
  middle.append(...kinds);
  made.append(element("th", name), middle, element("td", words));
  return made;
}

function fields(schema) {
  const table = element("table", "", "text");
  for (const [name, field] of Object.entries(schema.properties ?? {})) {
    const optional = schema.required?.includes(name) ? [] : [" (optional)"];
    table.append(row(name, [...kind(field), ...optional], field.description ?? ""));
  }
  return table;
}

function parameters(list) {
  const table = element("table", "", "text");
  for (const { name, in: place, schema, description, required } of list) {
    table.append(row(name, [...kind(schema ?? {}), ` in the ${place}${required ? "" : " (optional)"}`], description ?? schema?.description ?? ""));
  }
  return table;
}

function answers(operation) {
  const found = [];
  for (const [status, { description, content }] of Object.entries(operation.responses)) {
    if (!status.startsWith("2")) continue;
    const schema = content?.["application/json"]?.schema;
    const line = element("p", `Answer ${status}: `, "soft");
    line.append(...(schema && Object.keys(schema).length ? kind(schema) : [Object.keys(content ?? {}).join(", ") || description]));
    found.push(line);
  }
  return found;
}

function errors(operation) {
  const failing = Object.entries(operation.responses).filter(([status]) => !status.startsWith("2"));
  if (!failing.length) return [];
  const [table, details] = [element("table", "", "text"), element("details")];
  for (const [status, { description }] of failing) table.append(row(status, [], description));
  details.append(element("summary", "Errors"), table);
  return [details];
}

function route(spec, title, id, operation) {
  const section = Object.assign(element("section"), { id });
  section.append(element("h2", title, "plain"), element("p", sentence(operation.summary ?? "")));
  if (operation.description) section.append(element("p", operation.description, "soft"));
  if (operation.parameters?.length) section.append(parameters(operation.parameters));
  for (const [type, { schema }] of Object.entries(operation.requestBody?.content ?? {})) {
    const form = spec.components.schemas[nameOf(schema)] ?? schema;
    section.append(element("p", `Sent as ${type}:`, "soft"), fields(form));
  }
  section.append(...answers(operation), ...errors(operation));
  return section;
}

function list(spec) {
  const contents = element("ul");
  const add = (title, id) => {
    const item = element("li");
    item.append(Object.assign(element("a", title), { href: `#${id}` }));
    contents.append(item);
  };
  for (const [path, methods] of Object.entries(spec.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const title = `${method.toUpperCase()} ${path}`, id = `${method}${path.replace(/[^a-z0-9]+/gi, "-")}`;
      add(title, id);
      $("routes").append(route(spec, title, id, operation));
    }
  }
  add("WebSocket /v1/live", "live");
  $("contents").append(contents);
  for (const [name, schema] of Object.entries(spec.components?.schemas ?? {})) {
    if (/^(Body_|HTTPValidationError|ValidationError)/.test(name)) continue;
    $("schemas").append(Object.assign(element("h3", name), { id: `type-${name}` }), element("p", schema.description ?? "", "soft"), fields(schema));
  }
}

async function main() {
  const at = new URL(".", location.href).href.replace(/\/$/, "");
  $("example").textContent = [
    `curl -F video=@face.mp4 ${at}/v1/predict`,
    `curl -X PUT -F video=@resting.mp4 ${at}/v1/subjects/anna    # answers a job: GET /v1/jobs/ID`,
    `curl -F video=@face.mp4 -F subject_id=anna ${at}/v1/predict`,
    `curl -X DELETE ${at}/v1/subjects/anna`,
  ].join("\n");
  list(await (await fetch("openapi.json")).json());
}

main().catch(() => {
  $("error").textContent = "The server does not answer.";
  $("error").hidden = false;
});
