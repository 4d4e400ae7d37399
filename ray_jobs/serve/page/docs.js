// Lists what openapi.json says, so that it needs no other documentation page and no network.

function element(name, text = "", classes = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = classes;
  return made;
}

function resolve(spec, schema) {
  const name = schema?.$ref?.split("/").pop();
  return name ? spec.components.schemas[name] : schema;
}

function kind(spec, schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map((one) => kind(spec, one)).join(" or ");
  if (schema.format === "binary" || schema.contentMediaType) return "file";
  if (schema.type === "array") return `list of ${kind(spec, schema.items)}`;
  if (schema.additionalProperties) return `text → ${kind(spec, schema.additionalProperties)}`;
  return { string: "text", integer: "whole number" }[schema.type] ?? schema.type ?? "anything";
}

function fields(spec, schema) {
  const table = element("table", "", "text");
  for (const [name, field] of Object.entries(resolve(spec, schema).properties ?? {})) {
    const row = element("tr");
    const required = resolve(spec, schema).required?.includes(name);
    row.append(element("th", name), element("td", kind(spec, field)), element("td", field.description ?? ""));
    if (!required) row.children[1].append(" (optional)");
    table.append(row);
  }
  return table;
}

function route(spec, path, method, operation) {
  const section = element("section");
  section.append(element("h3", `${method.toUpperCase()} ${path}`), element("p", operation.summary));
  const form = operation.requestBody?.content?.["multipart/form-data"]?.schema;
  if (form) section.append(element("p", "Sent as multipart/form-data:", "soft"), fields(spec, form));
  const schema = operation.responses["200"].content["application/json"].schema;
  section.append(element("p", "Answer:", "soft"), fields(spec, schema));
  const errors = Object.entries(operation.responses).filter(([status]) => status !== "200");
  const table = element("table", "", "text");
  for (const [status, { description }] of errors) {
    const row = element("tr");
    row.append(element("th", status), element("td", description));
    table.append(row);
  }
  if (errors.length) section.append(element("p", "Errors:", "soft"), table);
  return section;
}

async function main() {
  const at = location.origin;
  document.getElementById("example").textContent = `curl -F video=@face.mp4 -F subject_id=someone ${at}/v1/predict`;
  const spec = await (await fetch("openapi.json")).json();
  const shown = document.getElementById("routes");
  for (const [path, methods] of Object.entries(spec.paths)) {
    for (const [method, operation] of Object.entries(methods)) shown.append(route(spec, path, method, operation));
  }
  const inner = Object.entries(spec.components.schemas).filter(([name]) => ["TopActionUnit", "ActionUnitCurves"].includes(name));
  for (const [name, schema] of inner) shown.append(element("h3", name), fields(spec, schema));
}

main().catch(() => {
  const error = document.getElementById("error");
  error.textContent = "The server does not answer.";
  error.hidden = false;
});
