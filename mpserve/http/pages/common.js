/* What both pages share: elements, and requests whose answers are shown as they come. */

/** An element: its properties, and its children, which are elements or text. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** JSON, indented, but a list of numbers stays on one line. JavaScript would round integers of more than 15 digits. */
export function pretty(text) {
  if (/(?<![\d.])\d{16,}(?![\d.])/.test(text)) return text;
  try {
    return JSON.stringify(JSON.parse(text), null, 2).replace(/\[[^[\]{}"]*\]/g, list =>
      list.replace(/\s+/g, " ").replace("[ ", "[").replace(" ]", "]"));
  } catch {
    return text;
  }
}

/** Send a request, and show its answer in `result`. An answer in parts is shown part by part. */
export async function show(result, path, request) {
  const begin = performance.now();
  const status = make("p"), about = make("p", {className: "soft"}), body = make("pre", {tabIndex: 0});
  body.setAttribute("aria-label", "Answer");
  try {
    const response = await fetch(path, request);
    const type = response.headers.get("content-type") || "";
    status.className = response.ok ? "success" : "fault";
    status.textContent = `${response.status} ${response.statusText}`;
    const tell = end => {
      const took = `${Math.round(performance.now() - begin)} ms${end ? "" : " so far"}`;
      about.textContent = [took, type, `request ${response.headers.get("x-request-id")}`].filter(Boolean).join(" · ");
    };
    tell(false);
    result.replaceChildren(status, about, body);
    if (!type || /json|text/.test(type)) await read(response.body, text => { body.textContent += text; tell(false); });
    else body.textContent = `${(await response.blob()).size} bytes`;
    if (/json/.test(type)) body.textContent = pretty(body.textContent);
    tell(true);
  } catch (error) {
    const words = `There was no ${status.textContent ? "whole " : ""}answer: ${error.message}`;
    result.append(make("p", {className: "fault", textContent: words}));
    if (!status.textContent) result.replaceChildren(result.lastChild);
  }
}

/** Read a body as text, part by part. */
export async function read(stream, take) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) take(part.value);
}

/** The example of an operation's JSON body in an OpenAPI document. */
export function exampleOf(api, operation) {
  const resolved = object => object.$ref ? resolved(object.$ref.slice(2).split("/").reduce((at, key) => at[key], api)) : object;
  const schema = operation.requestBody?.content["application/json"]?.schema;
  if (!schema) return undefined;
  const examples = schema.examples || resolved(schema).examples || schema.allOf?.map(part => resolved(part).examples).find(Boolean);
  return pretty(JSON.stringify((examples || [{}])[0]));
}
