// The page of `align view`: what is chosen, which is all in the address after "#", and the lists.
// Rows are drawn by rows.js.
"use strict";

const $ = (id) => document.getElementById(id);
const LIST = ["stage", "task", "filter", "sort", "up", "subset", "search", "ours", "theirs", "metric"];

let at = {};         // what is chosen, as in the address
let chain = null;    // what /api/chain said
let list = null;     // what /api/rows said
let listed = "";     // the choice that `list` is of
let place = 0;       // which row of `list` is shown
let fromEnd = false; // whether the page before is wanted, which is entered at its end
let turn = 0;        // answers to earlier questions are dropped

// -- what is chosen -----------------------------------------------------------------------------

const href = (choice) => "#" + new URLSearchParams(Object.entries(choice).filter(([, value]) => value));

function choose(change, replace = false) {
  const to = href({ ...at, ...change });
  if (replace) history.replaceState(null, "", to);
  else history.pushState(null, "", to);
  load();
}

// Another list begins at its first row.
const narrow = (change) => choose({ ...change, id: "", start: "" });

async function ask(path, parameters = {}) {
  const mine = turn;
  for (;;) {
    let answer;
    try {
      const response = await fetch(`api/${path}?${new URLSearchParams(parameters)}`);
      if (!response.ok) throw new Error(await response.text());
      answer = await response.json();
    } catch (error) {
      answer = { problem: error instanceof TypeError ? "The server has ended. Start it again: align view" : error.message };
    }
    if (path !== "chain" && mine !== turn) return null;
    if (!answer.waiting) return answer;
    const share = answer.total ? ` ${Math.round((100 * answer.done) / answer.total)} %` : "";
    $("count").textContent = `${answer.waiting}${share} …`;
    if (path === "rows") for (const id of ["rows", "pages", "row"]) $(id).replaceChildren();
    await new Promise((done) => setTimeout(done, 250));
  }
}

const wanted = () => JSON.stringify(LIST.map((key) => at[key] || ""));

async function load(again = false) {
  at = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  turn++;
  chain ??= await ask("chain");
  if (chain.problem) return fail(chain.problem);
  if (!at.stage) {
    const shown = chain.stages.filter((one) => one.rows && one.state !== "absent" && !one.trains);
    const first = shown.findLast((one) => one.kind === "evaluate") ?? shown.findLast((one) => one.kind === "score") ?? shown.at(-1);
    if (!first) { drawChain(); return fail("Nothing is made yet. Run the recipe, then look again: r."); }
    return choose({ stage: first.name }, true);
  }
  const tasks = chain.stages.find((one) => one.name === at.stage)?.tasks ?? [];
  if (tasks.length && !at.task) return choose({ task: tasks[0] }, true);
  drawChain();
  if (again || wanted() !== listed || at.start || !list.rows.some((one) => one.id === at.id)) {
    document.body.classList.add("loading");
    const found = await ask("rows", at);
    if (!found) return;
    if (found.problem) return fail(found.problem);
    list = found;
    for (const [key, value] of Object.entries(list.taken)) if (at[key]) at[key] = value;
    listed = wanted();
    place = fromEnd ? list.rows.length - 1 : 0;
    fromEnd = false;
    delete at.start;
    history.replaceState(null, "", href(at));  // as it was taken: names of a link may be of earlier
    drawChain();
  }
  document.body.classList.remove("loading");  // also of a search that was left for this list
  drawTools();
  const found = list.rows.findIndex((one) => one.id === at.id);
  if (found >= 0 && list.rows[place].id !== at.id) place = found;
  drawList();
  await show();
}

async function show() {
  const one = list.rows[place];
  if (!one) return void $("row").replaceChildren();
  if (at.id && at.id !== one.id) toast(`${at.id} is not among these rows.`);
  if (at.id !== one.id) {
    at.id = one.id;
    history.replaceState(null, "", href(at));
  }
  const row = await ask("row", { stage: at.stage, task: at.task ?? "", n: one.n });
  if (!row) return;
  drawCount();  // and no more how far what the row needed was
  if (row.problem) return fail(row.problem, false);
  const position = `${(list.start + place + 1).toLocaleString("en")} of ${list.total.toLocaleString("en")}`;
  $("row").replaceChildren(
    el("div", { class: "top" },
      el("button", { class: "back", onclick: () => document.body.classList.remove("reading") }, "‹ Rows"),
      el("h2", {}, seen(one.id)), el("span", { class: "soft" }, position),
      el("button", { onclick: () => step(-1), title: "k" }, "Previous"),
      el("button", { onclick: () => step(1), title: "j" }, "Next")),
    ...draw[list.form](row).flat().filter(Boolean));
  $("row").scrollTop = 0;
}

function step(by) {
  const next = place + by;
  if (next >= 0 && next < list.rows.length) {
    place = next;
    choose({ id: list.rows[next].id }, true);
  } else page(by, by < 0);
}

function page(by, end = false) {
  const start = list.start + by * chain.page;
  if (start < 0 || start >= list.total) return;
  fromEnd = end;
  choose({ start: String(start), id: "" });
}

// -- what is around the row ---------------------------------------------------------------------

function drawChain() {
  $("recipe").textContent = chain.recipe;
  document.title = `${at.stage ?? ""} · ${chain.recipe}`;
  const one = chain.stages.find((stage) => stage.name === at.stage);
  const what = one?.trains ? "what it is trained on" : at.task;
  $("where").textContent = [one?.name, what].filter(Boolean).join(": ");
  const link = (stage, task, words) => el("a", {
    href: href({ stage: stage.name, task }),
    "aria-current": stage.name === at.stage && (task ?? "") === (at.task ?? "") ? "true" : null,
  }, words);
  const focused = [...$("chain").querySelectorAll("a")].indexOf(document.activeElement);
  $("chain").replaceChildren(...chain.stages.map((stage) => el("div", { class: `stage ${stage.state}` },
    stage.rows && (stage.state !== "absent" || stage.trains)
      ? link(stage, null, [el("b", {}, stage.name), el("span", { class: "soft" }, stage.kind === stage.name ? "" : stage.kind)])
      : el("span", { class: "none" }, el("b", {}, stage.name), el("span", { class: "soft" }, stage.kind)),
    el("p", { class: "soft" }, stage.words),
    stage.tasks.map((task) => link(stage, task, task)))));
  if (focused >= 0) $("chain").querySelectorAll("a")[focused]?.focus();
  else $("chain").querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });
}

function select(label, key, options, value, more = {}) {
  return el("label", {}, el("span", {}, label), el("select", {
    id: `pick-${key}`, onchange: (event) => narrow({ [key]: event.target.value, ...more }),
  }, options.map(([name, words]) => el("option", { value: name, selected: name === value }, words))));
}

function drawTools() {
  const focused = document.activeElement?.id;
  const name = (metric) => metric.replace("numbers.", "");
  const parts = Object.entries(list.parts);
  const search = el("input", { id: "search", type: "search", placeholder: "words, or an id", value: at.search ?? "" });
  const tools = [];
  if (parts.length > 1) {
    tools.push(select("model", "ours", parts, list.taken.ours, { theirs: list.taken.theirs }),
      select("against", "theirs", parts.filter(([part]) => part !== list.taken.ours), list.taken.theirs, { ours: list.taken.ours }));
  }
  if (list.metrics.length > 1) tools.push(select("number", "metric", list.metrics.map((m) => [m, name(m)]), list.taken.metric));
  const filters = Object.entries(list.filters);
  if (filters.length) tools.push(select("filter", "filter", [["", "all"], ...filters], at.filter ?? ""));
  if (list.subsets.length) {
    const subsets = list.subsets.map(([one, n]) => [one, `${one} (${n.toLocaleString("en")})`]);
    tools.push(select(list.subset, "subset", [["", "all"], ...subsets], at.subset ?? ""));
  }
  const sorts = Object.entries(list.sorts);
  if (parts.length > 1) sorts.push(["difference", "difference of the two"]);
  tools.push(el("div", { class: "joined" },
    select("sort", "sort", [["", "as made"], ...sorts], at.sort ?? "", { up: "" }),
    el("button", { type: "button", disabled: !at.sort, title: at.up ? "lowest first" : "highest first",
      "aria-label": at.up ? "lowest first" : "highest first",
      onclick: () => narrow({ up: at.up ? "" : "1" }) }, at.up ? "↑" : "↓")));
  tools.push(el("label", { class: "wide" }, el("span", {}, "search"), search));
  $("tools").replaceChildren(...tools);
  if (focused && $("tools").querySelector(`#${CSS.escape(focused)}`)) $(focused).focus();
}

function drawCount() {
  const rows = `${list.total.toLocaleString("en")} ${list.total === 1 ? "row" : "rows"}`;
  const notes = [...list.notes, list.state === "done" ? "" : `${list.state} (r: look again)`].filter(Boolean);
  $("count").textContent = [list.total ? rows : "No row is like this", ...notes].join(", ");
}

function drawList() {
  drawCount();
  $("rows").replaceChildren(...list.rows.map((one, i) => el("li", {},
    el("a", { href: href({ ...at, id: one.id }), "aria-current": i === place ? "true" : null,
      onclick: () => document.body.classList.add("reading") },
    el("span", { class: "title", dir: "auto" }, one.title ? seen(one.title) : one.id), values(one)))));
  $("rows").querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });
  const last = list.start + list.rows.length;
  $("pages").replaceChildren(...(list.total > list.rows.length ? [
    el("button", { disabled: list.start === 0, onclick: () => page(-1), title: "p" }, "‹"),
    `${(list.start + 1).toLocaleString("en")}–${last.toLocaleString("en")}`,
    el("button", { disabled: last >= list.total, onclick: () => page(1), title: "n" }, "›")] : []));
}

function values(one) {
  if (list.form === "item") {
    return el("span", { class: "values" }, [list.taken.ours, list.taken.theirs].filter((part) => part in one.numbers).map((part) => {
      const value = one.numbers[part][at.sort && at.sort !== "difference" ? at.sort : list.taken.metric];
      return el("span", { class: `mark ${at.sort && at.sort !== "difference" ? "" : verdict(value)}`, title: list.parts[part] }, number(value));
    }));
  }
  const [name, first] = Object.entries(one.numbers[""] ?? {}).find(([, value]) => value != null) ?? [];
  const unit = name !== "turns" ? "" : first === 1 ? " turn" : " turns";
  return el("span", { class: "values", title: list.sorts[name] }, first == null ? "" : number(first) + unit);
}

function fail(problem, whole = true) {
  document.body.classList.remove("loading");
  if (whole) {
    [list, listed] = [null, ""];
    for (const id of ["tools", "rows", "pages"]) $(id).replaceChildren();
    $("count").textContent = "";
  }
  $("row").replaceChildren(el("p", { class: "problem" }, seen(problem)));
}

let fading = 0;
function toast(words) {
  $("toast").textContent = words;
  $("toast").hidden = false;
  clearTimeout(fading);
  fading = setTimeout(() => { $("toast").hidden = true; }, 4000);
}

// -- hands --------------------------------------------------------------------------------------

async function copy() {
  try {
    await navigator.clipboard.writeText(location.href);
    toast("Copied. It shows this to whoever runs align view of this recipe on the same port.");
  } catch {
    toast(location.href);
  }
}

async function again() {
  chain = null;
  await load(true);
}

function stages(open) {
  document.body.classList.toggle("choosing", open);
  $("stages").setAttribute("aria-expanded", String(document.body.classList.contains("choosing")));
  if (open) ($("chain").querySelector("[aria-current]") ?? $("chain").querySelector("a"))?.focus();
}

function along(by) {  // among the stages, while they have the focus
  const links = [...$("chain").querySelectorAll("a")];
  links[links.indexOf(document.activeElement) + by]?.focus();
}

const KEYS = {
  j: () => step(1), ArrowDown: () => step(1), k: () => step(-1), ArrowUp: () => step(-1),
  n: () => page(1), p: () => page(-1), g: () => stages(true),
  f: () => $("pick-filter")?.focus(), s: () => $("pick-sort")?.focus(), "/": () => $("search")?.focus(),
  d: () => choose({ details: at.details ? "" : "1" }, true),
  t: () => choose({ tokens: at.tokens ? "" : "1" }, true), r: again, c: copy, "?": () => $("help").showModal(),
};

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  if (event.key === "Escape") {
    document.activeElement.blur();
    stages(false);
    document.body.classList.remove("reading");
    return;
  }
  if (["INPUT", "SELECT"].includes(event.target.tagName)) return;
  const moves = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
  if (moves && $("chain").contains(document.activeElement)) along(moves);
  else if (KEYS[event.key] && (list || "g?rc".includes(event.key))) KEYS[event.key]();
  else return;
  event.preventDefault();
});

addEventListener("hashchange", () => load());
addEventListener("popstate", () => load());
$("tools").addEventListener("submit", (event) => {
  event.preventDefault();
  $("search").blur();
  narrow({ search: $("search").value.trim() });
});
$("chain").addEventListener("click", (event) => { if (event.target.closest("a")) stages(false); });
$("stages").addEventListener("click", () => stages(!document.body.classList.contains("choosing")));
$("copy").addEventListener("click", copy);
$("keys").addEventListener("click", () => $("help").showModal());

// while the recipe runs: how far its stages are
setInterval(async () => {
  if (document.hidden || !chain?.stages?.some((one) => one.state !== "done")) return;
  const found = await ask("chain");
  if (found.problem || JSON.stringify(found) === JSON.stringify(chain)) return;
  chain = found;
  drawChain();
}, 5000);

load();
