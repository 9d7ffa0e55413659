// The page of a result: filters, the scenario that is shown, and its step.
const scenarios = new Map(
  JSON.parse(document.getElementById("data").textContent).map((each) => [each.name, each]),
);
const links = [...document.querySelectorAll("#list a")];
const main = document.getElementById("scenario");
let now = null;
let step = 0;

// The filters.
function filter() {
  const words = document.getElementById("text").value.toLowerCase().split(/\s+/).filter(Boolean);
  const subject = document.getElementById("subject").value;
  const kinds = new Set(
    [...document.querySelectorAll(".outcomes input:checked")].map((box) => box.value),
  );
  let count = 0;
  for (const group of document.querySelectorAll("#list > li")) {
    let any = false;
    for (const link of group.querySelectorAll("a")) {
      const shown =
        kinds.has(link.dataset.kind) &&
        (!subject || group.dataset.subject === subject) &&
        words.every((word) => link.dataset.text.includes(word));
      link.parentElement.hidden = !shown;
      any ||= shown;
      count += shown;
    }
    group.hidden = !any;
  }
  document.getElementById("shown").textContent = `${count} of ${links.length} scenarios`;
}

// A line each; older results have one.
function stepInWords({ operation }) {
  const lines = now.step.length ? now.step : [operation];
  return lines.map((line) => make("div", { class: "mono" }, line));
}

function difference() {
  const found = now.difference;
  if (!found) return null;
  const list = make("dl", { class: "facts" }, ...fact("step", ...stepInWords(found)));
  found.expected.forEach((each, index) =>
    list.append(
      ...fact(
        index ? "or" : "expected",
        mono(each.outcome),
        make("div", { class: "dim" }, "by ", rule(each.rule), `: ${each.promise}`),
      ),
    ),
  );
  list.append(
    ...fact("observed", make("strong", {}, mono(found.observed))),
    ...fact("again", mono(now.again)),
  );
  return make(
    "section",
    { class: "box" + (now.failed ? " bad" : ""), "aria-label": "Difference" },
    list,
  );
}

function show() {
  const parts = [
    make(
      "div",
      {},
      make(
        "div",
        { class: "title" },
        make("h2", {}, now.name),
        make("span", { class: `badge ${now.kind}` }, `${now.icon} ${now.label}`),
      ),
      make("p", { class: "why" }, now.why),
      make(
        "p",
        { class: "source" },
        [
          now.source,
          now.events ? `${counted(now.events, "event")} judged` : "",
          now.seconds ? `${now.seconds} s` : "",
        ]
          .filter(Boolean)
          .join(" · "),
      ),
    ),
  ];
  if (now.reason) parts.push(make("p", { class: now.kind }, now.reason));
  if (now.evidence) parts.push(make("p", { class: "source" }, "Evidence: ", now.evidence));
  if (now.under_way)
    parts.push(make("div", {}, "Under way: ", ...stepInWords(now.under_way)));
  parts.push(difference());
  for (const problem of now.kernel_complaints) {
    parts.push(
      make(
        "section",
        { class: "box bad" },
        make("h3", {}, "The kernel complained"),
        make("p", {}, problem.what),
        problem.excerpt.length ? make("pre", { tabindex: "0" }, problem.excerpt.join("\n")) : null,
      ),
    );
  }
  now.view = null;
  if (now.steps.length) {
    const { svg, rows, palette, scale } = picture();
    const box = make(
      "div",
      {
        class: "picture",
        tabindex: "0",
        role: "group",
        "aria-label": "Guest-physical memory over the steps; the tables below say the same",
      },
      svg,
    );
    box.addEventListener("scroll", () => {
      svg.style.setProperty("--down", `${box.scrollTop / scale}px`);
      svg.style.setProperty("--right", `${box.scrollLeft / scale}px`);
    });
    const button = (text, label, to) => {
      const made = make("button", { type: "button", "aria-label": label }, text);
      made.addEventListener("click", () => go(now.name, to()));
      return made;
    };
    const range = make("input", {
      type: "range",
      min: 0,
      max: now.steps.length - 1,
      "aria-label": "Step",
    });
    range.addEventListener("input", () => go(now.name, Number(range.value)));
    const output = make("output", { "aria-live": "off" });
    const buttons = [
      button("|◀", "First step", () => 0),
      button("◀", "Step before", () => step - 1),
      button("▶", "Next step", () => step + 1),
      button("▶|", "Last step", () => now.steps.length - 1),
    ];
    const panel = make("div", { class: "step" });
    parts.push(
      make("figure", {}, box, legend()),
      make(
        "div",
        { class: "stepper", role: "group", "aria-label": "Steps" },
        ...buttons,
        range,
        output,
      ),
      panel,
      make("p", { class: "sr", role: "status", id: "said" }),
    );
    now.view = { rows, palette, scale, range, output, buttons, panel, box };
  } else if (now.kind !== "skipped")
    parts.push(make("p", { class: "dim" }, "No steps were recorded."));
  main.replaceChildren(...parts.filter((part) => part !== null));
  document.title = `${now.name}: ${now.label}`;
  for (const link of links) {
    if (link.dataset.name === now.name) {
      link.setAttribute("aria-current", "true");
      reveal(link);
    } else link.removeAttribute("aria-current");
  }
}

// What an address names may be in another result only.
function decoded(name = "") {
  try {
    return decodeURIComponent(name);
  } catch {
    return name;
  }
}
function showMissing(name) {
  now = null;
  main.replaceChildren(
    make("h2", {}, name || "?"),
    make("p", { role: "status" }, "No scenario of this name is in this result."),
  );
  document.title = `${name}: not in this result`;
  for (const link of links) link.removeAttribute("aria-current");
}

function reveal(link) {
  const list = document.getElementById("list"),
    top = link.offsetTop;
  if (top < list.scrollTop || top + link.offsetHeight > list.scrollTop + list.clientHeight)
    list.scrollTop = top - list.clientHeight / 2;
}

// Scroll the picture to a mark that lies beside what is shown of it.
function revealSideways({ box, scale }, mark) {
  if (!mark) return;
  const left = Number(mark.getAttribute("x")) * scale,
    right = left + Number(mark.getAttribute("width")) * scale;
  if (left < box.scrollLeft + LEFT * scale || right > box.scrollLeft + box.clientWidth)
    box.scrollLeft = (left + right - box.clientWidth) / 2;
}

const place = (each) =>
  each.origin < 0
    ? "Before the first operation"
    : isEnd(each)
      ? "At the end"
      : `Operation ${each.origin}`;

function showStep() {
  const view = now.view;
  if (!view) return;
  const each = now.steps[step],
    slots = slotsAfter(step),
    before = step ? slotsAfter(step - 1) : [];
  view.rows.forEach((row, index) => row.classList.toggle("now", index === step));
  const top = (HEAD + step * ROW) * view.scale;
  if (
    top < view.box.scrollTop + HEAD * view.scale ||
    top + ROW * view.scale > view.box.scrollTop + view.box.clientHeight
  )
    view.box.scrollTop = top - view.box.clientHeight / 2;
  revealSideways(view, view.rows[step].querySelector(".wrong"));
  view.range.value = step;
  view.output.textContent = place(each);
  view.buttons.forEach((button, index) => {
    // A button that is really disabled would lose the focus of whoever steps with it.
    const ended = index < 2 ? step === 0 : step === now.steps.length - 1;
    button.setAttribute("aria-disabled", String(ended));
  });
  const wrong = now.difference && "differs" in each && each.differs !== null;
  const call = make(
    "section",
    { class: "box wide" + (wrong ? " bad" : ""), "aria-label": "Operation" },
    make("h3", {}, place(each)),
    make("p", { class: "call mono" }, each.call),
    each.outcome
      ? make(
          "p",
          {},
          "→ ",
          make("strong", {}, each.outcome),
          each.rule ? " by " : "",
          each.rule ? rule(each.rule) : "",
        )
      : null,
    wrong
      ? make(
          "p",
          { class: "differs" },
          make("strong", {}, "Here the kernel and the model differ. "),
          "What comes after this step is not judged.",
        )
      : null,
    ...(each.notes || []).map((note) => make("p", { class: "dim mono" }, note)),
  );
  const focused = view.panel.contains(document.activeElement)
    ? document.activeElement.getAttribute("aria-label")
    : null;
  view.panel.replaceChildren(
    call,
    make(
      "section",
      { class: "box", "aria-label": "Memslots" },
      make("h3", {}, "Memslots, from the highest gpa down"),
      slotTable(slots, before, view.palette),
      slots.length > 1 && treeOf(step) && treeOf(step).length === slots.length
        ? tree(slots, treeOf(step), view.palette)
        : null,
    ),
    make(
      "section",
      { class: "box", "aria-label": "Touches" },
      make(
        "h3",
        {},
        each.touches ? `${counted(each.touches, "touch", "touches")} of the guest` : "The guest",
      ),
      metTable(each),
    ),
  );
  if (focused)
    view.panel.querySelector(`[aria-label="${focused}"]`)?.focus({ preventScroll: true });
  document.getElementById("said").textContent =
    `${place(each)}: ${each.call}: ` +
    `${each.outcome || "done"}. ${counted(slots.length, "slot")}.`;
}

// Where we are stands in the address, so that a step can be linked to.
function go(name, to) {
  const bounded = Math.max(0, Math.min(to, scenarios.get(name).steps.length - 1));
  history.replaceState(
    null,
    "",
    `#s/${encodeURIComponent(name)}` + (to === undefined ? "" : `/${bounded}`),
  );
  arrive();
}
function arrive() {
  const [kind, name, at] = location.hash.slice(1).split("/");
  if (kind !== "s") return;
  const wanted = scenarios.get(decoded(name));
  if (!wanted) {
    showMissing(decoded(name));
    return;
  }
  const changed = !now || now.name !== wanted.name;
  if (changed) {
    now = { ...wanted };
    show();
  }
  const interesting = now.steps.findIndex((each) => now.difference && "differs" in each);
  step =
    at === undefined
      ? Math.max(interesting, now.steps.length > 1 && interesting < 0 ? 1 : 0)
      : Number(at) || 0;
  step = Math.max(0, Math.min(step, now.steps.length - 1));
  showStep();
}

for (const kind of ["input", "change"])
  document.getElementById("filters").addEventListener(kind, filter);
document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
// On a phone the scenario stands below the list.
function scrollToScenario() {
  if (matchMedia("(max-width: 50rem)").matches) setTimeout(() => main.scrollIntoView(), 0);
}
document.getElementById("list").addEventListener("click", (event) => {
  if (event.target.closest("a")) scrollToScenario();
});
window.addEventListener("hashchange", arrive);
document.addEventListener("keydown", (event) => {
  if (!now || !now.view || event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.target.closest("input, select, textarea") || scrolls(event.target)) return;
  const moves = { ArrowLeft: step - 1, ArrowRight: step + 1, Home: 0, End: now.steps.length - 1 };
  if (event.key in moves) {
    event.preventDefault();
    go(now.name, moves[event.key]);
  }
});
// What is wider than its place and has the focus is scrolled with the same keys.
function scrolls(target) {
  const wide = target.closest(".scroll, pre");
  return wide !== null && wide.scrollWidth > wide.clientWidth;
}
filter();
arrive();
if (location.hash.startsWith("#s/")) scrollToScenario();
else if (!now) {
  const order = [
    "differs",
    "unhealthy",
    "internal-error",
    "inconclusive",
    "known",
    "passes-now",
    "passed",
    "skipped",
  ];
  const first = order.map((kind) => links.find((link) => link.dataset.kind === kind)).find(Boolean);
  if (first) go(first.dataset.name);
}
