/* The page of /openapi.json: every route, with a form to try it. */
import {exampleOf, make, show as showAnswer} from "./common.js";

/* Text in which `this` is code. */
function prose(text) {
  return text.split("`").map((part, index) => index % 2 ? make("code", {textContent: part}) : part);
}

/* A schema in one line of notation: {name: string, data?: number[]}. References become links to the schema. */
function notation(schema) {
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    return [make("a", {href: `#${name}`, textContent: name})];
  }
  if ("const" in schema) return [JSON.stringify(schema.const)];
  if (schema.enum) return [schema.enum.map(value => JSON.stringify(value)).join(" | ")];
  if (schema.allOf) return joined(schema.allOf, " & ");
  if (schema.anyOf) return joined(schema.anyOf, " | ");
  if (schema.prefixItems) return ["[", ...joined(schema.prefixItems, ", "), "]"];
  if (schema.items) {
    const items = notation(schema.items);
    return schema.items.allOf || schema.items.anyOf ? ["(", ...items, ")[]"] : [...items, "[]"];
  }
  if (schema.properties) {
    const optional = name => schema.type === "object" && !(schema.required || []).includes(name) ? "?" : "";
    const fields = Object.entries(schema.properties).map(([name, inner]) => [`${name}${optional(name)}: `, ...notation(inner)]);
    return ["{", ...fields.flatMap((field, index) => index ? [", ", ...field] : field), "}"];
  }
  if (schema.additionalProperties) return ["{any name: ", ...notation(schema.additionalProperties), "}"];
  return [[schema.type || "anything"].flat().join(" | ")];
}

function joined(schemas, separator) {
  return schemas.flatMap((schema, index) => index ? [separator, ...notation(schema)] : notation(schema));
}

function listing(entries) {
  return make("dl", {}, ...entries.flatMap(([term, ...description]) => [make("dt", {}, term), make("dd", {}, ...description)]));
}

function contentOf(owner) {
  return Object.entries(owner.content).map(([type, {schema}]) =>
    make("code", {className: "content"}, make("span", {className: "soft", textContent: `${type}  `}), ...notation(schema)));
}

function show(api) {
  const resolved = object => object.$ref ? resolved(object.$ref.slice(2).split("/").reduce((at, key) => at[key], api)) : object;

  function inside(method, path, operation) {
    const parameters = operation.parameters.map(resolved);
    const success = ([status, response]) => [make("span", {className: "success", textContent: status}), ...contentOf(response)];
    const fault = ([status, response]) =>
      [make("span", {className: "fault", textContent: status}), ...prose(resolved(response).description)];
    const parts = [make("h3", {textContent: "Try it"}), trial(method, path, operation, parameters)];
    if (parameters.length) {
      parts.push(make("h3", {textContent: "Parameters"}), listing(parameters.map(({name, in: place, description, schema}) =>
        [name, ...prose(description), make("span", {className: "soft"}, ` ${place}, `, ...notation(schema))])));
    }
    if (operation.requestBody) parts.push(make("h3", {textContent: "Body"}), ...contentOf(operation.requestBody));
    parts.push(make("h3", {textContent: "Answers"}), listing(Object.entries(operation.responses).map(response =>
      response[0] === "200" ? success(response) : fault(response))));
    return parts;
  }

  function trial(method, path, operation, parameters) {
    const inputs = parameters.filter(({in: place}) => place === "path")
      .map(({name}) => make("input", {name, required: true, ariaLabel: name}));
    const labels = inputs.map(input => make("label", {}, make("code", {textContent: input.name}), input));
    const example = exampleOf(api, operation);
    const body = example !== undefined && make("textarea", {value: example, spellcheck: false, ariaLabel: "body"});
    const send = make("button", {className: "primary", textContent: "Send"});
    const result = make("div", {className: "result", role: "status"});
    const form = make("form", {}, ...labels, ...(body ? [body] : []), send, result);
    form.addEventListener("submit", async event => {
      event.preventDefault();
      send.disabled = true;
      const filled = inputs.reduce((to, {name, value}) => to.replace(`{${name}}`, encodeURIComponent(value)), path);
      const headers = body ? {"content-type": "application/json"} : {};
      if (key.value) headers.authorization = `Bearer ${key.value}`;
      await showAnswer(result, `.${filled}`, {method: method.toUpperCase(), headers, body: body ? body.value : undefined});
      send.disabled = false;
    });
    return form;
  }

  function row(method, path, operation) {
    const head = make("summary", {}, make("code", {className: `method ${method}`, textContent: method.toUpperCase()}),
      make("code", {textContent: path}), make("span", {textContent: operation.summary}));
    const details = make("details", {className: "row"}, head);
    details.addEventListener("toggle", () => {
      if (details.childElementCount === 1) details.append(make("div", {className: "inside"}, ...inside(method, path, operation)));
    });
    return details;
  }

  function schemaRow([name, schema]) {
    const head = make("summary", {}, make("code", {textContent: name}), make("span", {}, ...prose(schema.description || "")));
    return make("details", {className: "row", id: name}, head, make("div", {className: "inside"}, make("code", {}, ...notation(schema))));
  }

  const key = make("input", {type: "password", autocomplete: "off", ariaLabel: "key or token"});
  const operations = Object.entries(api.paths).flatMap(([path, item]) =>
    Object.entries(item).map(([method, operation]) => ({method, path, operation})));
  const section = (title, about, rows) =>
    make("section", {}, make("h2", {}, title, make("small", {textContent: about})), ...rows);
  document.title = `${api.info.title} API`;
  document.querySelector("h1").firstChild.textContent = `${api.info.title} `;
  document.querySelector("h1 small").textContent = api.info.version;
  document.querySelector("#about").replaceChildren(
    ...prose(api.info.description), " As a document: ", make("a", {href: "openapi.json", textContent: "openapi.json"}), ".");
  if (api.security) document.querySelector("#about").after(make("label", {}, "Key or token ", key));
  const sections = api.tags.map(({name, description}) => section(name, description, operations
    .filter(({operation}) => operation.tags.includes(name)).map(({method, path, operation}) => row(method, path, operation))));
  document.querySelector("main").replaceChildren(...sections.filter(({childElementCount}) => childElementCount > 1),
    section("Schemas", "What bodies are made of", Object.entries(api.components.schemas).map(schemaRow)));
}

/* A link to a schema opens it. */
addEventListener("hashchange", () => {
  const target = document.getElementById(location.hash.slice(1));
  if (target) target.open = true;
});

fetch("openapi.json").then(response => response.json()).then(show)
  .catch(error => { document.querySelector("#about").textContent = `openapi.json could not be read: ${error.message}`; });
