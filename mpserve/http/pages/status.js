/* The status page: figures of all workers together, made from the totals that arrive each second. */
import {exampleOf, make, read, show} from "./common.js";

const MINUTE = 60, SHOWN = 120, RECENT = 10, LOST = 4;  // seconds: of the tables, the charts, the latencies, and of silence
const LINES = 5;  // models with a line of their own
const $ = id => document.getElementById(id);
const NONE = "–";

/* Requests, with the key if one is needed. It is kept in this variable alone, so it is gone with the page. */

let key = "";

const keyed = (request = {}) => key ? {...request, headers: {...request.headers, authorization: `Bearer ${key}`}} : request;
const ask = (path, request) => fetch(path, keyed(request));

/* Figures: what has happened between two events. */

const COUNTS = ["answered", "failed", "rows", "executions", "queue_seconds"];
let before = null;  // the last event
const steps = [];  // {time, seconds, models: {name: counts and durations}}

function totalsOf(model) {
  const sum = count => model.statistics.reduce((total, version) => total + version[count], 0);
  return {...Object.fromEntries(COUNTS.map(count => [count, sum(count)])), durations: model.durations};
}

/* Totals begin at zero again when a model is loaded anew. */
const difference = (now, then = 0) => now >= then ? now - then : now;

function differences(now, then) {
  const counts = COUNTS.map(count => [count, difference(now[count], then[count])]);
  const durations = Object.entries(now.durations).map(([bound, count]) => [bound, difference(count, then.durations[bound])]);
  return {...Object.fromEntries(counts), durations: Object.fromEntries(durations)};
}

function step(event) {
  const totals = Object.fromEntries(event.models.map(model => [model.name, totalsOf(model)]));
  if (before && event.time > before.time) {
    const models = Object.entries(totals).filter(([name]) => before.totals[name])
      .map(([name, now]) => [name, differences(now, before.totals[name])]);
    steps.push({time: event.time, seconds: event.time - before.time, models: Object.fromEntries(models)});
    while (steps[0].time < event.time - SHOWN) steps.shift();
  }
  before = {time: event.time, totals};
}

/** What has happened in the last seconds: to one model, or to all. */
function sumOf(seconds, name = null) {
  const sum = {seconds: 0, durations: {}, ...Object.fromEntries(COUNTS.map(count => [count, 0]))};
  for (const {time, seconds: length, models} of steps) {
    if (time <= before.time - seconds) continue;
    sum.seconds += length;
    for (const model of name === null ? Object.values(models) : [models[name]].filter(Boolean)) {
      for (const count of COUNTS) sum[count] += model[count];
      for (const [bound, count] of Object.entries(model.durations)) sum.durations[bound] = (sum.durations[bound] || 0) + count;
    }
  }
  return sum;
}

/** The quantile of a histogram of cumulated counts: its value in milliseconds, and "<" or ">" if only a bound is known. */
function quantile(durations, share) {
  const buckets = Object.entries(durations).map(([bound, count]) => [bound === "+Inf" ? Infinity : Number(bound), count])
    .sort(([one], [other]) => one - other);
  const wanted = share * (buckets.at(-1)?.[1] || 0);
  if (!wanted) return null;
  const index = buckets.findIndex(([, count]) => count >= wanted);
  const [bound, count] = buckets[index];
  if (index === 0) return {value: bound * 1000, sign: "< "};
  const [lower, less] = buckets[index - 1];
  if (bound === Infinity) return {value: lower * 1000, sign: "> "};
  return {value: (lower + (bound - lower) * (wanted - less) / (count - less)) * 1000, sign: ""};
}

/* Texts */

const number = (value, digits, least = digits) =>
  value.toLocaleString("en", {minimumFractionDigits: least, maximumFractionDigits: digits});
const perSecond = value => number(value, value && value < 10 ? 1 : 0);
const digitsOf = value => value < 1 ? 2 : value < 10 ? 1 : 0;
const milliseconds = value => value >= 10000 ? `${number(value / 1000, 1)} s` : `${number(value, digitsOf(value))} ms`;
const bound = value => value >= 1000 ? `${number(value / 1000, 1, 0)} s` : `${number(value, 2, 0)} ms`;
const latency = found => !found ? NONE : found.sign ? found.sign + bound(found.value) : milliseconds(found.value);
const bytes = value => value >= 2 ** 30 ? `${number(value / 2 ** 30, 1)} GiB` : `${number(value / 2 ** 20, 0)} MiB`;
const clock = seconds => new Date(seconds * 1000).toLocaleTimeString("en-GB");
const capitalised = text => text && text[0].toUpperCase() + text.slice(1);

/* Elements are kept, and only their texts change, so that nothing jumps and a focus stays. */

function tell(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function badge(element, text, kind) {
  tell(element, text);
  element.className = `badge ${kind}`;
}

/** One child of `parent` for each entry, in order. `build` makes the child of a key, with a function `fill` for its entry. */
function each(parent, entries, keyOf, build) {
  const known = new Map([...parent.children].map(child => [child.key, child]));
  const wanted = entries.map(entry => {
    const key = keyOf(entry), child = known.get(key) || Object.assign(build(entry), {key});
    known.delete(key);
    child.fill(entry);
    return child;
  });
  for (const child of known.values()) child.remove();
  wanted.forEach((child, index) => { if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] || null); });
}

/** A row of a table: a head, and cells by their labels. Classes of a cell follow its label after a colon. */
function row(labels) {
  const head = make("th", {scope: "row"});
  head.setAttribute("role", "rowheader");
  const cells = labels.map(label => {
    const [name, kind = ""] = label.split(":"), cell = make("td", {className: kind});
    cell.setAttribute("role", "cell");
    if (name) cell.dataset.label = name;
    return cell;
  });
  const element = make("tr", {}, head, ...cells);
  element.setAttribute("role", "row");
  return [element, head, ...cells];
}

/* Workers */

const restarts = new Map();  // by slot: their number, and when it last grew while the page was open

function sinceRestart(worker, time) {
  const known = restarts.get(worker.slot);
  if (!known || known.number !== worker.restarts) restarts.set(worker.slot, {number: worker.restarts, time: known ? time : -Infinity});
  return time - restarts.get(worker.slot).time;
}

function buildWorker() {
  const [element, head, state, device, memory, inFlight, waiting, connections, restarted] = row([
    "State:state", "Device", "Memory:number", "In flight:number", "Waiting:number", "Connections:number", "Restarts:number"]);
  const mark = make("span"), why = make("small", {className: "why"});
  const slot = make("span"), pid = make("small"), count = make("span"), reason = make("small", {className: "why"});
  head.append(slot, " ", pid);
  state.append(mark, why);
  restarted.append(count, reason);
  const fill = worker => {
    const isNew = worker.sinceRestart < MINUTE;
    tell(slot, `Worker ${worker.slot}`);
    tell(pid, `pid ${worker.pid}`);
    badge(mark, worker.trouble && worker.state === "ready" ? "Failing" : capitalised(worker.state), worker.trouble ? "bad" : worker.state === "ready" && !isNew ? "good" : "warn");
    tell(why, worker.trouble ? capitalised(worker.trouble) : isNew ? "Replaced a moment ago" : "");
    element.classList.toggle("ill", Boolean(worker.trouble));
    tell(device, worker.device);
    tell(memory, bytes(worker.memory));
    tell(inFlight, number(worker.in_flight, 0));
    tell(waiting, number(worker.waiting, 0));
    tell(connections, number(worker.connections, 0));
    tell(count, number(worker.restarts, 0));
    tell(reason, worker.restarts ? capitalised(worker.last_restart) : "");
  };
  return Object.assign(element, {fill});
}

/* Models */

let loadable = [];  // names of the repository, for clients that may load them

function buildModel({name}) {
  const [element, head, state, rate, p50, p99, waiting, queue, batch, errors, actions] = row([
    "State:state", "Requests/s:number", "p50:number", "p99:number", "Waiting:number", "In queue:number", "Batch:number", "Errors:number", ":actions"]);
  const mark = make("span"), versions = make("small");
  head.append(make("span", {textContent: name}), " ", versions);
  state.append(mark);
  const button = (text, act) => {
    const made = make("button", {type: "button", textContent: text, ariaLabel: `${text} ${name}`});
    made.addEventListener("click", act);
    actions.append(made);
    return made;
  };
  const attempt = button("Try", () => openTrial(name));
  const load = button("Load", event => manage(event.target, name, "load"));
  const unload = button("Unload", event => {
    if (confirm(`Unload ${name} in every worker?`)) manage(event.target, name, "unload");
  });
  const fill = ({model, ready, manages}) => {
    const sum = sumOf(MINUTE, name);
    tell(versions, model ? model.versions.map(version => `v${version}`).join(", ") : "");
    if (!model) badge(mark, "Not loaded", "");
    else badge(mark, `${model.workers} of ${ready} workers`, model.workers && model.workers >= ready ? "good" : "bad");
    tell(rate, sum.seconds ? perSecond(sum.answered / sum.seconds) : NONE);
    tell(p50, latency(quantile(sum.durations, 0.5)));
    tell(p99, latency(quantile(sum.durations, 0.99)));
    tell(waiting, number(model?.waiting || 0, 0));
    tell(queue, sum.answered ? milliseconds(sum.queue_seconds / sum.answered * 1000) : NONE);
    tell(batch, sum.executions ? number(sum.rows / sum.executions, 1) : NONE);
    tell(errors, number(sum.failed, 0));
    errors.classList.toggle("fault", sum.failed > 0);
    attempt.hidden = !model;
    tell(load, model ? "Reload" : "Load");
    load.ariaLabel = `${load.textContent} ${name}`;
    load.hidden = !manages;
    unload.hidden = !manages || !model;
  };
  return Object.assign(element, {fill});
}

async function manage(button, name, verb) {
  button.disabled = true;
  try {
    const response = await ask(`v2/repository/models/${encodeURIComponent(name)}/${verb}`, {method: "POST"});
    notice(response.ok ? "" : (await response.json()).error);
  } catch (error) {
    notice(`There was no answer: ${error.message}`);
  }
  button.disabled = false;
  await readRepository();
}

async function readRepository() {
  const response = await ask("v2/repository/index", {method: "POST"});
  if (response.ok) loadable = [...new Set((await response.json()).map(entry => entry.name))];
}

/* What needs attention */

let noticed = "";

function notice(text) {
  noticed = text;
}

function troublesOf(event) {
  const troubles = event.workers.filter(worker => worker.trouble)
    .map(worker => ({kind: "bad", text: `Worker ${worker.slot}: ${worker.trouble}.`}));
  const replaced = event.workers.filter(worker => !worker.trouble && worker.sinceRestart < MINUTE)
    .map(worker => ({kind: "warn", text: `Worker ${worker.slot} was replaced: ${worker.last_restart}.`}));
  const isFailing = ({failed, answered}) => failed && !answered;
  const failing = event.models.filter(({name}) => isFailing(sumOf(MINUTE, name)))
    .map(({name}) => ({kind: "warn", text: `Model ${name}: no request of the last minute succeeded.`}));
  const notices = event.notices.map(text => ({kind: "bad", text}));
  return [...notices, ...troubles, ...failing, ...replaced, ...(noticed ? [{kind: "bad", text: noticed}] : [])];
}

/* Charts */

const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const charts = {};

/** A chart of lines with these labels. `format` tells the value of a line, counted from 1, at an index. */
function chart(id, labels, format) {
  const holder = $(id), key = labels.join("\n");
  if (charts[id]?.key === key) return charts[id].plot;
  charts[id]?.plot.destroy();
  const line = {stroke: style("--soft"), grid: {stroke: style("--line"), width: 1}, ticks: {show: false}, font: "12px system-ui"};
  const told = (plot, value, index, at) => format(index, at ?? plot.data[0].length - 1);
  const plot = new uPlot({
    width: holder.clientWidth,
    height: 156,
    padding: [8, 24, 0, 0],
    cursor: {points: {size: 6}, drag: {x: false, y: false}},
    scales: {y: {range: (_, __, most) => [0, Math.max(most || 0, 1) * 1.1]}},
    axes: [
      {...line, size: 30, space: 70, values: (_, ticks) => ticks.map(clock)},
      {...line, size: 52, space: 30, values: (_, ticks) => ticks.map(tick => number(tick, tick % 1 ? 1 : 0))},
    ],
    series: [
      {label: "at", value: (plot, _, __, at) => (at => at ? clock(at) : "–")(plot.data[0][at ?? plot.data[0].length - 1])},
      ...labels.map((label, index) => ({
        label, stroke: style(`--series-${index % 6 + 1}`), width: 2, points: {show: false}, dash: index % 2 ? [6, 4] : [], value: told,
      })),
    ],
  }, [[], ...labels.map(() => [])], holder);
  plot.over.parentElement.setAttribute("role", "img");
  charts[id] = {key, plot};
  return plot;
}

function draw(event) {
  const times = steps.map(({time}) => time);
  const names = event.models.map(({name}) => name), own = names.slice(0, names.length > LINES + 1 ? LINES : names.length);
  const rest = names.slice(own.length);
  const rate = (at, some) => some.reduce((sum, name) => sum + (at.models[name]?.answered || 0), 0) / at.seconds;
  const lines = [...own.map(name => [name]), ...(rest.length ? [rest] : [])];
  const labels = [...own, ...(rest.length ? [`${rest.length} others`] : [])];
  const end = before.time, range = {min: end - SHOWN, max: end};
  const put = (id, plot, data) => {
    plot.setData([times, ...data], false);
    plot.batch(() => { plot.setScale("x", range); });
    const said = plot.series.slice(1).map((series, index) => `${series.label} ${series.value(plot, null, index + 1, null)}`);
    plot.over.parentElement.setAttribute("aria-label", `${$(id).previousElementSibling.textContent}: ${said.join(", ")}`);
  };
  const rates = lines.map(some => steps.map(at => rate(at, some)));
  put("rates", chart("rates", labels, (line, at) => at in steps ? perSecond(rate(steps[at], lines[line - 1])) : NONE), rates);
  put("latencies", chart("latencies", SHARES.map(share => `p${share * 100}`), (line, at) => latency(latencies[line - 1][at])),
    latencies.map(found => found.map(quantile => quantile?.value ?? null)));
}

const SHARES = [0.5, 0.99];
const latencies = SHARES.map(() => []);  // one entry for each step

function noteLatencies() {
  const {durations} = sumOf(RECENT);
  SHARES.forEach((share, index) => {
    latencies[index].push(quantile(durations, share));
    latencies[index].splice(0, latencies[index].length - steps.length);
  });
}

/** Draw the charts anew in the colours and the size of the page. */
function redraw() {
  for (const [id, {plot}] of Object.entries(charts)) { plot.destroy(); delete charts[id]; }
  if (latest) draw(latest);
}

/* One event */

let latest = null, arrived = 0;

function update(event) {
  arrived = performance.now();
  step(event);
  noteLatencies();
  for (const worker of event.workers) worker.sinceRestart = sinceRestart(worker, event.time);
  const names = event.models.map(({name}) => name);
  if (event.manages && (!latest || names.some(name => !loadable.includes(name)))) readRepository();
  latest = event;
  const troubles = troublesOf(event);
  tell($("version"), event.version);
  $("docs").hidden = !event.has_docs;
  badge($("state"), !event.ready ? "Not ready" : troubles.length ? "Attention" : "Ready",
    !event.ready ? "bad" : troubles.length ? "warn" : "good");
  each($("troubles"), troubles, ({text}) => text, ({kind, text}) =>
    Object.assign(make("li", {className: kind, textContent: text}), {fill() {}}));
  const all = sumOf(RECENT), sumOfWorkers = field => event.workers.reduce((sum, worker) => sum + worker[field], 0);
  tell($("rate"), all.seconds ? perSecond(all.answered / all.seconds) : NONE);
  tell($("failures"), all.seconds ? perSecond(all.failed / all.seconds) : NONE);
  $("failures").classList.toggle("fault", all.failed > 0);
  tell($("p50"), latency(quantile(all.durations, 0.5)));
  tell($("p99"), latency(quantile(all.durations, 0.99)));
  tell($("in_flight"), number(sumOfWorkers("in_flight"), 0));
  tell($("waiting"), number(sumOfWorkers("waiting"), 0));
  each($("workers"), event.workers, ({slot}) => slot, buildWorker);
  const ready = event.workers.filter(({state}) => state === "ready").length, {manages} = event;
  const unloaded = manages ? loadable.filter(name => !names.includes(name)) : [];
  const rows = [...event.models.map(model => ({name: model.name, model})), ...unloaded.map(name => ({name}))];
  each($("models"), rows.map(entry => ({...entry, ready, manages})), ({name}) => name, buildModel);
  $("errors-section").hidden = !manages;
  each($("errors"), errorsOf(event), error => error.key, buildError);
  draw(event);
}

/* Errors: one entry for each message, the newest first. */

function errorsOf(event) {
  const seen = new Map();
  for (const error of event.errors) {
    const key = [error.model, error.message, error.where].join("\n");
    if (!seen.has(key)) seen.set(key, {...error, key});
  }
  return seen.size ? [...seen.values()] : [{key: "", message: "None"}];
}

function buildError() {
  const message = make("p"), about = make("small"), item = make("li", {}, about, message);
  const fill = ({time, slot, model, request_id: request, where, message: text}) => {
    const places = [time && new Date(time * 1000).toLocaleString("sv"), slot === "-" ? "arbiter" : slot && `worker ${slot}`,
      model && model !== "-" && `model ${model}`, request && request !== "-" && `request ${request}`, where];
    tell(about, places.filter(Boolean).join(" · "));
    tell(message, text);
  };
  return Object.assign(item, {fill});
}

/* Try a model */

const form = $("trial").querySelector("form"), result = form.querySelector(".result");
let path = "", opener = null;

async function openTrial(name) {
  opener = document.activeElement;
  const api = await (await ask("openapi.json")).json(), place = encodeURIComponent(name);
  path = [`/v2/models/${place}/infer`, `/v1/models/${place}:predict`].find(path => api.paths[path]);
  tell($("trial-title"), `Try ${name}`);
  tell($("trial-path"), `POST ${path}`);
  $("trial-body").value = exampleOf(api, api.paths[path].post);
  result.replaceChildren();
  $("trial").hidden = false;
  $("trial-title").focus();
  $("trial").scrollIntoView({block: "nearest"});
}

form.addEventListener("submit", async event => {
  event.preventDefault();
  const send = form.querySelector(".primary");
  send.disabled = true;
  const body = $("trial-body").value, headers = {"content-type": "application/json"};
  await show(result, `.${path}`, keyed({method: "POST", headers, body}));
  send.disabled = false;
});
$("trial-close").addEventListener("click", () => { $("trial").hidden = true; opener.focus(); });

/* The connection: none while nobody looks. */

let connection = null, again = 0;

/* Not an EventSource, which can send no key. */
async function connect() {
  clearTimeout(again);
  connection?.abort();
  connection = null;
  if (document.hidden) return;
  const own = connection = new AbortController();
  try {
    const response = await ask("status", {headers: {accept: "text/event-stream"}, cache: "no-store", signal: own.signal});
    askForKey(response.status === 401);
    if (response.status === 401) return;
    if (response.ok) await readEvents(response.body, event => { if (own === connection) update(event); });
  } catch { /* the connection is lost */ }
  if (own === connection) again = setTimeout(connect, 1000);
}

async function readEvents(stream, take) {
  let rest = "";
  await read(stream, text => {
    const events = (rest + text).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.split("\n").find(line => line.startsWith("data: "));
      if (data) take(JSON.parse(data.slice(6)));
    }
  });
}

function askForKey(needed) {
  $("key").hidden = !needed;
  document.querySelector("main").hidden = needed;
  $("metrics").hidden = needed || Boolean(key);  // a link sends no key
  if (!needed) return;
  badge($("state"), "Key needed", "warn");
  tell($("key-refused"), key ? "The server does not know this key." : "");
  $("key-field").focus();
}

$("key").addEventListener("submit", event => {
  event.preventDefault();
  key = $("key-field").value.trim();
  connect();
});

/* A worker that hangs keeps its connections. Another one may answer a new connection. */
setInterval(() => {
  if (document.hidden || !$("key").hidden || performance.now() - arrived < LOST * 1000) return;
  badge($("state"), "No connection", "bad");
  connect();
}, LOST * 1000);
document.addEventListener("visibilitychange", connect);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
new ResizeObserver(redraw).observe($("charts"));
connect();
