// How rows are drawn. What models and data say is only ever set as text. `at`, `list`, `href` and
// `KEYS` are view.js's.
"use strict";

// -- elements -----------------------------------------------------------------------------------

function el(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.flat(Infinity).filter((child) => child != null));
  return made;
}

// A text as it is, but for what would not be seen or would turn what is: control characters,
// marks of direction, spaces without width.
const HIDDEN = /([\0-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]|(?<![\ud800-\udbff])[\udc00-\udfff]|[\ud800-\udbff](?![\udc00-\udfff]))/;

function seen(text) {
  return String(text).split(HIDDEN).map((part, i) => {
    if (i % 2 === 0) return part;
    const code = part.codePointAt(0);
    const name = code < 256 ? `\\x${code.toString(16).padStart(2, "0")}` : `U+${code.toString(16)}`;
    return el("span", { class: "hidden" }, name);
  });
}

const text = (value, more = {}) => el("div", { class: "text", dir: "auto", ...more }, seen(value));

function number(value) {
  if (value == null) return "–";
  if (typeof value !== "number") return String(value);
  return Number.isInteger(value) ? value.toLocaleString("en") : value.toFixed(3);
}

function said(message) {
  const content = message.content ?? "";
  const calls = message.tool_calls ? JSON.stringify(message.tool_calls, null, 1) : "";
  return (typeof content === "string" ? content : JSON.stringify(content, null, 1)) + calls;
}

function dialog(messages, words = null) {
  if (typeof messages === "string") return el("div", { class: "turn" }, text(messages));
  return el("div", { class: "dialog" }, (messages ?? []).map((message) =>
    el("div", { class: `turn ${message.role === "assistant" ? "assistant" : ""}` },
      el("span", { class: "role" }, seen(message.role), message.weight === 0 ? " (not learnt)" : ""),
      el("div", { class: "text", dir: "auto" }, marked(said(message), words)))));
}

// A text in which what matches is marked.
function marked(whole, words) {
  if (!words) return seen(whole);
  return whole.split(words).map((part, i) => (i % 2 ? el("mark", {}, seen(part)) : seen(part)));
}

function facts(values) {
  const entries = Object.entries(values).filter(([, value]) => value != null);
  if (!entries.length) return null;
  return el("dl", { class: "facts" }, entries.map(([name, value]) => [
    el("dt", {}, seen(name)),
    el("dd", {}, typeof value === "number" ? number(value)
      : text(typeof value === "string" ? value : JSON.stringify(value, null, 1)))]));
}

function folded(title, content) {
  return content && el("details", {}, el("summary", {}, title), content);
}

// -- rows ---------------------------------------------------------------------------------------

const draw = {
  candidates(row) {
    const answers = row.completions;
    const scored = answers.some((answer) => "score" in answer);
    let members = [...new Set(answers.flatMap((answer) => Object.keys(answer.scores ?? {})))];
    const more = members.some((name) => name.includes("."));
    if (at.details !== "1") members = members.filter((name) => !name.includes("."));
    if (members.length === 1 && answers.every((a) => a.score === a.scores?.[members[0]])) members = [];
    const draws = answers.some((answer) => "draw" in answer);
    const main = scored ? "score" : "logprob";
    const values = answers.map((answer) => answer[main]).filter((value) => value != null);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const heads = ["answer", main, ...members, "tokens", ...(draws ? ["draw"] : [])];
    const cell = (head, content) => el("td", { class: "n", "data-name": head }, content);
    return [dialog(row.prompt), el("div", { class: "scroll" }, el("table", { class: members.length > 4 ? "candidates many" : "candidates" },
      el("thead", {}, el("tr", {}, heads.map((head) => el("th", { class: "n" }, seen(head))), el("th", {}, ""))),
      el("tbody", {}, answers.map((answer) => {
        const share = high > low && answer[main] != null ? (answer[main] - low) / (high - low) : 0;
        const first = el("span", { class: "bar" }, number(answer[main]));
        first.style.setProperty("--share", share);
        return el("tr", {},
          cell("answer", String(answer.index)), cell(main, first),
          members.map((name) => cell(name, number(answer.scores?.[name]))),
          cell("tokens", number(answer.tokens)), draws ? cell("draw", number(answer.draw)) : null,
          el("td", { class: "said" }, text(answer.text), el("p", { class: "marks" },
            answer.finish === "length" ? el("span", { class: "mark bad" }, "cut") : null,
            answer.taken.map((words) => el("span", { class: `mark ${words.startsWith("rejected") ? "" : "good"}` }, words)))));
      })))),
    more ? el("p", {}, el("button", { onclick: KEYS.d, title: "d" },
      at.details ? "Hide the details of rewards" : "Show the details of rewards")) : null,
    folded("Columns of the prompt", facts(row.columns ?? {}))];
  },

  pair(row) {
    if (!row.ranked && !row.chosen) return [dialog(row.text)];
    const { id, prompt, chosen, rejected, ranked, chosen_score, rejected_score, also_rejected, read, ...rest } = row;
    const compared = ranked
      ? el("ol", { class: "ranked" }, ranked.map((one) => el("li", {}, dialog(one))))
      : el("div", {}, sides([chosen], [rejected], chosen_score, rejected_score));
    return [
      ...(read ? [reading(read), folded(ranked ? "As it is ranked" : "Words that differ", compared)] : [dialog(prompt), compared]),
      read ? null : folded("More rejected answers", also_rejected?.length ? el("div", {}, also_rejected.map((one) => dialog(one))) : null),
      folded("Columns", facts(rest))];
  },

  dialog(row) {
    const { id, messages, prompt, text: document_, read, ...rest } = row;
    return [
      ...(read ? [reading(read)] : [dialog(document_ ?? messages ?? prompt)]),
      folded("Columns", facts(rest))];
  },

  removed(row) {
    const { messages, reason, facts: { repeats, ...found } } = row;
    return [
      el("p", { class: "marks" }, el("span", { class: "mark bad" }, seen(reason.replaceAll("_", " ")))),
      repeats ? el("p", {}, "It repeats ", el("a", { class: "link", href: href({ stage: at.stage, task: "kept", id: repeats }) }, seen(repeats)), ", which stays.") : null,
      facts(Object.fromEntries(Object.entries(found).map(([name, value]) => [name.replaceAll("_", " "), value]))),
      dialog(messages, shared(found))];
  },

  item(row) {
    const order = [list.taken.ours, list.taken.theirs, ...Object.keys(list.parts)];
    const models = [...new Set(order)].filter((part) => part in row.models);
    return [dialog(row.prompt),
      row.prefix ? el("p", {}, el("span", { class: "role" }, "the answer begins with"), text(row.prefix)) : null,
      row.answer == null ? null : el("section", { class: "right" }, el("h3", {}, "right answer"), text(right(row))),
      row.chosen_text && row.rejected_text ? sides(several(row.chosen_text), several(row.rejected_text)) : null,
      el("div", { class: "models" }, models.map((part) => model(part, row.models[part], row)))];
  },
};

// The words that a rule found, whatever their case and what is between them.
function shared({ gram, phrase, line }) {
  const words = (gram ?? phrase ?? line)?.match(/[\p{L}\p{N}]+/gu);
  return words ? new RegExp(`(${words.join("[^\\p{L}\\p{N}]+")})`, "giu") : null;
}

const LEARNT = {
  learnt: ["learnt", "in the loss"],
  nll: ["in the NLL term alone", "in the loss of the chosen answer as a text, not in that of the pair"],
  scored: ["the score is read", "the score is read here"],
};

// A row as the model reads it in training: its tokens, and what becomes of each.
function reading({ parts, note, tokens, learnt, left_out }) {
  const each = parts.flatMap(([, found]) => found);
  const count = (mark) => each.reduce((sum, token) => sum + (token[2] === mark ? token[1].length : 0), 0);
  const share = learnt ? ` (${Math.round((100 * learnt) / tokens)} %)` : "";
  const legend = left_out ? null : Object.entries(LEARNT).filter(([mark]) => count(mark)).map(([mark, [words, title]]) =>
    el("span", { title }, el("span", { class: `token ${mark}` }, words), ` ${number(count(mark))}${mark === "learnt" ? share : ""}`));
  return el("section", { class: "reading" },
    note ? el("p", { class: left_out ? "mark bad note" : "mark note" }, seen(note)) : null,
    el("div", { class: "legend" }, el("span", {}, tokens === 1 ? "1 token" : `${number(tokens)} tokens`), legend,
      el("button", { onclick: KEYS.t, title: "t" }, at.tokens ? "Hide where tokens begin" : "Show where tokens begin")),
    parts.map(([name, found]) => el("div", { class: `part ${name} ${left_out ? "out" : ""}` },
      name ? el("span", { class: "role" }, name) : null,
      el("div", { class: `text tokens ${at.tokens ? "bounds" : ""}`, dir: "auto" }, found.map(piece)))));
}

function piece([words, ids, mark, special]) {
  const space = (sign) => el("span", { class: "space" }, sign);
  const shown = words.split(/([ \n\t])/).map((part, i) => {
    if (i % 2 === 0) return seen(part);
    if (part === "\n") return [space("⏎"), "\n"];
    return at.tokens ? space(part === " " ? "·" : "⇥") : part;
  });
  const title = `${ids.join(" ")}${special ? ", special" : ""}: ${LEARNT[mark]?.[1] ?? "read, not learnt"}`;
  return el("span", { class: `token ${mark} ${special ? "special" : ""}`, title }, shown);
}

// Answers that were preferred and those that were not; of one each, the words that differ are marked.
function sides(chosen, rejected, ...scores) {
  const [one, other] = [chosen, rejected].map((answers) => said(answers[0].at(-1)));
  const single = chosen.length === 1 && rejected.length === 1;
  const marks = single ? different(one, other) : null;
  const side = (name, answers, score, marked) => el("section", { class: `side ${name}` },
    el("h3", {}, name, el("span", { class: "soft" }, score == null ? "" : number(score))),
    answers.map((turns) => [turns.length > 1 ? dialog(turns.slice(0, -1)) : null,
      marked ? el("div", { class: "text", dir: "auto" }, marked) : text(said(turns.at(-1)), { class: "text one" })]));
  return [
    el("div", { class: "sides" }, side("chosen", chosen, scores[0], marks?.[0]), side("rejected", rejected, scores[1], marks?.[1])),
    marks || !single ? null : el("p", { class: "soft" }, "Too long to mark the words that differ."),
  ];
}

// An item has a dialog or a text, or a list of them; all of them as dialogs.
function several(answers) {
  const all = typeof answers === "string" || answers[0]?.role ? [answers] : answers;
  return all.map((one) => (typeof one === "string" ? [{ role: "assistant", content: one }] : one));
}

// The right answer; of options the text that its number means.
function right({ answer, choices }) {
  return choices?.[answer] ?? (typeof answer === "string" ? answer : JSON.stringify(answer, null, 1));
}

function model(part, one, { answer, choices }) {
  const { answers, numbers, options, each, ...rest } = one;
  const best = options && Math.max(...options.map(Number));
  return el("section", { class: "model" },
    el("h3", {}, seen(list.parts[part]), part === list.taken.theirs ? el("span", { class: "soft" }, "compared with") : null),
    el("p", { class: "marks" }, marks(numbers)),
    answers.map(([words, finish], i) => [
      answers.length > 1 || finish !== "stop" ? el("p", { class: "marks" },
        answers.length > 1 ? el("span", { class: "mark" }, `sample ${i + 1}`) : null,
        each ? marks(each[i]) : null,
        finish === "stop" ? null : el("span", { class: "mark bad" }, finish === "length" ? "cut" : finish)) : null,
      text(words)]),
    options ? el("ol", { class: "options", start: 0 }, options.map((value, i) =>
      el("li", {}, choices ? text(choices[i]) : null, number(value), Number(value) === best ? [" ", el("span", { class: "mark" }, "most likely")] : null,
        i === answer ? [" ", el("span", { class: "mark good" }, "right")] : null))) : null,
    facts(rest));
}

const marks = (numbers) => Object.entries(numbers).map(([name, value]) =>
  el("span", { class: `mark ${`numbers.${name}` === list.taken.metric ? verdict(value) : ""}` }, seen(name), " ", number(value)));

const verdict = (value) => (value === 1 ? "good" : value === 0 ? "bad" : "");

// The words of two texts that are not in their longest common subsequence; null: too many to tell.
function different(one, other) {
  const split = (words) => words.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) ?? [];
  const [a, b] = [split(one), split(other)];
  if (a.length * b.length > 9e6) return null;
  const wide = b.length + 1;
  const length = new Uint16Array((a.length + 1) * wide);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      length[i * wide + j] = a[i] === b[j] ? length[(i + 1) * wide + j + 1] + 1
        : Math.max(length[(i + 1) * wide + j], length[i * wide + j + 1]);
    }
  }
  const parts = [[], []];
  const add = (side, word, marked) => parts[side].push(marked ? el("mark", {}, seen(word)) : seen(word));
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) { add(0, a[i++], false); add(1, b[j++], false); }
    else if (j === b.length || (i < a.length && length[(i + 1) * wide + j] >= length[i * wide + j + 1])) add(0, a[i++], true);
    else add(1, b[j++], true);
  }
  return parts.map((side) => side.flat());
}
