"use strict";
(() => {
  const scenarios = new Map(JSON.parse(document.getElementById("data").textContent)
    .map((each) => [each.name, each]));
  const links = [...document.querySelectorAll("#list a")];
  const main = document.getElementById("scenario");
  const PAGE = 4096n;
  const COLOURS = ["#f6c667", "#8ecdf2", "#6fcfb0", "#e0a8c6", "#f3ea7d", "#f0a070", "#9db7ee", "#b9d884"];
  const OWN = "#c9ced1";
  const CELL = 22, ROW = 24, HEAD = 26, LEFT = 40, LABEL = 84, BREAK = 16;
  const hex = (gfn) => "0x" + (BigInt(gfn) * PAGE).toString(16);
  let now = null;
  let step = 0;

  // Elements, made without any HTML from data.
  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "class") element.className = value; else element.setAttribute(name, value);
    }
    element.append(...children.filter((child) => child !== null));
    return element;
  }
  function draw(tag, attributes = {}, text = null) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== null) element.textContent = text;
    return element;
  }
  const fact = (name, ...value) => [make("dt", {}, name), make("dd", {}, ...value)];
  const mono = (text) => make("span", { class: "mono" }, text);
  const rule = (name) => make("a", { href: "#rule-" + name }, name);

  // What may be wider than a phone scrolls by itself, with the keyboard, too.
  const sideways = (label, ...children) => make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": label }, ...children);

  // The filters.
  function filter() {
    const words = document.getElementById("text").value.toLowerCase().split(/\s+/).filter(Boolean);
    const subject = document.getElementById("subject").value;
    const kinds = new Set([...document.querySelectorAll(".outcomes input:checked")].map((box) => box.value));
    let count = 0;
    for (const group of document.querySelectorAll("#list > li")) {
      let any = false;
      for (const link of group.querySelectorAll("a")) {
        const shown = kinds.has(link.dataset.kind) && (!subject || group.dataset.subject === subject)
          && words.every((word) => link.dataset.text.includes(word));
        link.parentElement.hidden = !shown;
        any ||= shown;
        count += shown;
      }
      group.hidden = !any;
    }
    document.getElementById("shown").textContent = `${count} of ${links.length} scenarios`;
  }

  // The slots after a step: those of the last step before it that changed them.
  function slotsAfter(index) {
    for (let at = index; at >= 0; at--) if (now.steps[at].slots) return now.steps[at].slots;
    return [];
  }
  const numberOf = (slot) => slot[0] * 65536 + slot[1];
  function colours(steps) {
    const found = new Map();
    const own = steps.length && steps[0].origin < 0 && steps[0].slots ? steps[0].slots.map(numberOf) : [];
    for (const number of own) found.set(number, OWN);
    for (const each of steps) for (const slot of each.slots || []) {
      if (!found.has(numberOf(slot))) found.set(numberOf(slot), COLOURS[(found.size - own.length) % COLOURS.length]);
    }
    return found;
  }

  // Guest-physical memory as columns: within one, nothing differs at any step.
  function columns(steps) {
    const lanes = new Map();
    const lane = (as) => lanes.get(as) || lanes.set(as, { ends: new Set(), spans: [] }).get(as);
    const span = (as, from, to) => { const l = lane(as); l.ends.add(from).add(to); l.spans.push([from, to]); };
    for (const each of steps) {
      for (const [as, , from, pages] of each.slots || []) span(as, from, from + pages);
      for (const [as, from, pages] of each.met || []) span(as, from, from + pages);
    }
    const found = [];
    let x = LEFT;
    for (const [as, { ends, spans }] of [...lanes].sort((a, b) => a[0] - b[0])) {
      const sorted = [...ends].sort((a, b) => a - b);
      spans.sort((a, b) => a[0] - b[0]);
      let next = 0, reach = -1, group = null;
      for (let at = 0; at + 1 < sorted.length; at++) {
        const from = sorted[at], to = sorted[at + 1];
        while (next < spans.length && spans[next][0] <= from) reach = Math.max(reach, spans[next++][1]);
        if (reach <= from) { group = null; continue; }
        if (group === null) {
          const last = found.length ? found[found.length - 1] : null;
          if (last) x = Math.max(x + BREAK, last.group.x + LABEL);
          group = { x, as, from };
        }
        const pages = to - from;
        const width = Math.round(pages === 1 ? CELL : CELL + 9 * Math.log2(pages) + Math.min(pages, 6) * 5);
        found.push({ as, from, to, x, width, group });
        x += width;
      }
    }
    return { columns: found, width: Math.max(x, found.length ? found[found.length - 1].group.x + LABEL : 0) + 12 };
  }

  // The first and the last of the columns that make up a stretch of memory.
  function covered(all, as, from, to) {
    const before = (column) => column.as < as || (column.as === as && column.from < from);
    let low = 0, high = all.length;
    while (low < high) { const middle = (low + high) >> 1; if (before(all[middle])) low = middle + 1; else high = middle; }
    let last = low;
    while (last + 1 < all.length && all[last + 1].as === as && all[last + 1].to <= to) last++;
    return low < all.length && all[low].as === as && all[low].to <= to ? [all[low], all[last]] : [null, null];
  }

  function mark(access, what, x, y, on) {
    const off = on ? "" : " off";
    if (what === "stop") return draw("path", { class: "mark stop", d: `M${x - 3} ${y - 3}l6 6m0 -6l-6 6` });
    const ring = what === "mmio" ? " ring" : "";
    const name = "mark" + ring + off;
    if (access === "r") return draw("circle", { class: name, cx: x, cy: y, r: 3 });
    if (access === "w") return draw("rect", { class: name, x: x - 2.7, y: y - 2.7, width: 5.4, height: 5.4 });
    if (access === "i") return draw("path", { class: name, d: `M${x} ${y - 3.8}l3.8 3.8l-3.8 3.8l-3.8 -3.8z` });
    return draw("path", { class: name, d: `M${x - 3} ${y - 3.2}l6.4 3.2l-6.4 3.2z` });
  }

  function picture() {
    const steps = now.steps, palette = colours(steps);
    const { columns: all, width } = columns(steps);
    const height = HEAD + steps.length * ROW + 6;
    const scale = Math.max(1, Math.min(1.5, (main.clientWidth - 60) / width));
    const svg = draw("svg", { width: width * scale, height: height * scale, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    const rows = [];
    let previous = null;
    for (const { group } of all) {
      if (group === previous) continue;
      const space = group.as ? "SMM " : "";
      svg.append(draw("text", { x: group.x, y: 16 }, space + hex(group.from)));
      if (previous) svg.append(draw("line", { class: "break", x1: group.x - 8, x2: group.x - 8, y1: HEAD, y2: height - 6 }));
      previous = group;
    }
    steps.forEach((each, index) => {
      const y = HEAD + index * ROW;
      const row = draw("g", { class: "row" });
      row.append(draw("rect", { class: "hit", x: 0, y, width, height: ROW, fill: "transparent" }));
      const wrong = "differs" in each && each.differs !== null && now.difference;
      row.append(draw("text", { class: wrong ? "bad" : "number", x: 8, y: y + 16 }, (wrong ? "≠" : "") + index));
      const slots = slotsAfter(index);
      for (const slot of slots) {
        const [first, last] = covered(all, slot[0], slot[2], slot[2] + slot[3]);
        if (!first) continue;
        row.append(draw("rect", { x: first.x, y: y + 2, width: last.x + last.width - first.x - 1, height: ROW - 4, rx: 3, fill: palette.get(numberOf(slot)) }),
          draw("text", { class: "id", x: first.x + 3, y: y + 10 }, String(slot[1])));
      }
      for (const [as, from, pages, access, what] of each.met || []) {
        const [first, last] = covered(all, as, from, from + pages);
        for (let at = all.indexOf(first); first && at <= all.indexOf(last); at++) {
          const column = all[at];
          const on = slots.some((s) => s[0] === as && s[2] <= column.from && column.from < s[2] + s[3]);
          const x = column.x + column.width / 2 + (access === "r" ? -4 : access === "w" ? 4 : 0);
          row.append(mark(access, what, x, y + ROW - 8, on));
        }
      }
      if (wrong) {
        const at = all.find((c) => c.from <= each.differs && each.differs < c.to);
        row.append(draw("rect", { class: "wrong", rx: 4, y: y + 1, height: ROW - 2, x: at ? at.x - 2 : 2, width: at ? at.width + 3 : width - 4 }));
      }
      row.addEventListener("click", () => go(now.name, index));
      svg.append(row);
      rows.push(row);
    });
    return { svg, rows, palette, scale };
  }

  function legend() {
    const one = (access, what, text) => {
      const svg = draw("svg", { viewBox: "0 0 14 14", "aria-hidden": "true" });
      svg.append(mark(access, what, 7, 7, false));
      return make("span", {}, svg, " " + text);
    };
    return make("figcaption", {}, "Steps go down, guest-physical memory to the right (not to scale).",
      one("r", "memory", "read memory"), one("r", "mmio", "read: MMIO exit"), one("w", "memory", "wrote memory"),
      one("w", "mmio", "write: MMIO exit"), one("x", "memory", "executed"), one("i", "memory", "memory of an instruction"), one("r", "stop", "vCPU stopped"));
  }

  function slotTable(slots, before, palette) {
    const old = new Map(before.map((slot) => [numberOf(slot), slot]));
    const row = (slot, index, kind) => make("tr", { class: kind },
      make("td", {}, index, " ", make("span", { class: "swatch", style: `background:${palette.get(numberOf(slot))}` }), `slot ${slot[1]}${slot[0] ? ` of as_id ${slot[0]}` : ""}`, kind ? make("span", { class: "change" }, ` ${kind}`) : ""),
      make("td", { class: "mono" }, `${hex(slot[2])}..${hex(slot[2] + slot[3])}`),
      make("td", {}, String(slot[3])), make("td", { class: "mono" }, slot[4]), make("td", { class: "mono" }, slot[5]));
    const body = make("tbody");
    slots.forEach((slot, index) => {
      const was = old.get(numberOf(slot));
      old.delete(numberOf(slot));
      body.append(row(slot, `[${index}]`, !was ? "new" : was.join() === slot.join() ? "" : "changed"));
    });
    for (const slot of old.values()) body.append(row(slot, "", "gone"));
    if (!body.children.length) return make("p", { class: "dim" }, "There is no slot.");
    const head = make("tr", {}, ...["slot", "gpa", "pages", "hva", "flags"].map((name) => make("th", { scope: "col" }, name)));
    return sideways("Table of memslots", make("table", {}, make("thead", {}, head), body));
  }

  // The kernel's red-black tree of slots by gfn: lower gfns to the left. A knot is [parent, is red].
  function treeOf(index) {
    if (main.dataset.structure !== "tree") return null;
    for (let at = index; at >= 0; at--) if (now.steps[at].slots) return now.steps[at].knots || null;
    return null;
  }
  function tree(slots, knots, palette) {
    const order = slots.map((slot, at) => at).sort((a, b) => slots[a][0] - slots[b][0] || slots[a][2] - slots[b][2]);
    const depth = (at) => knots[at][0] < 0 ? 0 : 1 + depth(knots[at][0]);
    const wide = 58, high = 40, deepest = Math.max(...slots.map((slot, at) => depth(at)));
    const x = (at) => order.indexOf(at) * wide + wide / 2, y = (at) => depth(at) * high + 18;
    const width = slots.length * wide, height = (deepest + 1) * high + 6;
    const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
      "aria-label": slots.map((slot, at) => `slot ${slot[1]}: ${knots[at][1] ? "red" : "black"}, ${knots[at][0] < 0 ? "root" : `below slot ${slots[knots[at][0]][1]}`}`).join("; ") });
    slots.forEach((slot, at) => {
      if (knots[at][0] >= 0) svg.append(draw("line", { class: "branch", x1: x(knots[at][0]), y1: y(knots[at][0]), x2: x(at), y2: y(at) }));
    });
    slots.forEach((slot, at) => {
      svg.append(draw("ellipse", { class: knots[at][1] ? "knot red" : "knot", cx: x(at), cy: y(at), rx: 24, ry: 13, fill: palette.get(numberOf(slot)) }),
        draw("text", { class: "id", x: x(at), y: y(at) + 3.5, "text-anchor": "middle" }, String(slot[1])),
        draw("text", { class: "gfn", x: x(at), y: y(at) + 23, "text-anchor": "middle" }, hex(slot[2])));
    });
    return make("div", { class: "tree" }, make("h3", {}, "The kernel's tree by gfn"),
      sideways("Tree of slots", svg),
      make("p", { class: "dim" }, "A red-black tree, as the calls make it: thick is black, dashed is red. Kernels to 5.16 have the array of the table."));
  }

  const ACCESS = { r: "reads", w: "writes", x: "executes", i: "uses" };
  const WHAT = { mmio: "MMIO exit: no usable slot", memory: "no exit", stop: "the vCPU stops" };
  function metTable(each) {
    if (!each.met || !each.met.length) return make("p", { class: "dim" }, "There is no touch to show.");
    const body = make("tbody");
    for (const [as, from, pages, access, what, first] of each.met) {
      const found = WHAT[what] || `page${pages > 1 ? `s ${first} to ${first + pages - 1}` : ` ${first}`} of ${what}`;
      const where = pages > 1 ? `${hex(from)}..${hex(from + pages)}` : hex(from);
      body.append(make("tr", {}, make("td", { class: "mono" }, where + (as ? " (SMM)" : "")), make("td", {}, ACCESS[access]), make("td", {}, found)));
    }
    const head = make("tr", {}, ...["gpa", "guest", "meets"].map((name) => make("th", { scope: "col" }, name)));
    return sideways("Table of touches", make("table", {}, make("thead", {}, head), body));
  }

  function difference() {
    const found = now.difference;
    if (!found) return null;
    const list = make("dl", { class: "facts" }, ...fact("step", mono(found.operation)));
    found.expected.forEach((each, index) => list.append(...fact(index ? "or" : "expected", mono(each.outcome),
      make("div", { class: "dim" }, "by ", rule(each.rule), `: ${each.promise}`))));
    list.append(...fact("observed", make("strong", {}, mono(found.observed))), ...fact("again", mono(now.again)));
    return make("section", { class: "box" + (now.failed ? " bad" : ""), "aria-label": "Difference" }, list);
  }

  function show() {
    const parts = [make("div", {}, make("div", { class: "title" }, make("h2", {}, now.name),
      make("span", { class: `badge ${now.kind}` }, `${now.icon} ${now.label}`)),
      make("p", { class: "why" }, now.why), make("p", { class: "source" }, [now.source, `${now.events} events judged`, `${now.seconds} s`].filter(Boolean).join(" · ")))];
    if (now.reason) parts.push(make("p", { class: now.kind }, now.reason));
    if (now.under_way) parts.push(make("p", {}, "Under way: ", mono(now.under_way.operation)));
    parts.push(difference());
    for (const problem of now.kernel_complaints) {
      parts.push(make("section", { class: "box bad" }, make("h3", {}, "The kernel complained"), make("p", {}, problem.what),
        problem.excerpt.length ? make("pre", { tabindex: "0" }, problem.excerpt.join("\n")) : null));
    }
    now.view = null;
    if (now.steps.length) {
      const { svg, rows, palette, scale } = picture();
      const box = make("div", { class: "picture", tabindex: "0", role: "group", "aria-label": "Guest-physical memory over the steps; the tables below say the same" }, svg);
      const button = (text, label, to) => {
        const made = make("button", { type: "button", "aria-label": label }, text);
        made.addEventListener("click", () => go(now.name, to()));
        return made;
      };
      const range = make("input", { type: "range", min: 0, max: now.steps.length - 1, "aria-label": "Step" });
      range.addEventListener("input", () => go(now.name, Number(range.value)));
      const output = make("output", { "aria-live": "off" });
      const buttons = [button("|◀", "First step", () => 0), button("◀", "Step before", () => step - 1),
        button("▶", "Next step", () => step + 1), button("▶|", "Last step", () => now.steps.length - 1)];
      const panel = make("div", { class: "step" });
      parts.push(make("figure", {}, box, legend()), make("div", { class: "stepper", role: "group", "aria-label": "Steps" }, ...buttons, range, output),
        panel, make("p", { class: "sr", role: "status", id: "said" }));
      now.view = { rows, palette, scale, range, output, buttons, panel, box };
    } else parts.push(make("p", { class: "dim" }, "No steps were recorded."));
    main.replaceChildren(...parts.filter((part) => part !== null));
    document.title = `${now.name}: ${now.label}`;
    for (const link of links) {
      if (link.dataset.name === now.name) { link.setAttribute("aria-current", "true"); reveal(link); }
      else link.removeAttribute("aria-current");
    }
  }

  function reveal(link) {
    const list = document.getElementById("list"), top = link.offsetTop;
    if (top < list.scrollTop || top + link.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = top - list.clientHeight / 2;
  }

  const place = (each) => each.origin < 0 ? "Before the first operation" : each.call.startsWith("the end") ? "At the end" : `Operation ${each.origin}`;

  function showStep() {
    const view = now.view;
    if (!view) return;
    const each = now.steps[step], slots = slotsAfter(step), before = step ? slotsAfter(step - 1) : [];
    view.rows.forEach((row, index) => row.classList.toggle("now", index === step));
    const top = (HEAD + step * ROW) * view.scale;
    if (top < view.box.scrollTop + HEAD || top + ROW * view.scale > view.box.scrollTop + view.box.clientHeight) view.box.scrollTop = top - view.box.clientHeight / 2;
    view.range.value = step;
    view.output.textContent = `Step ${step} of ${now.steps.length - 1}`;
    view.buttons.forEach((button, index) => { button.disabled = index < 2 ? step === 0 : step === now.steps.length - 1; });
    const wrong = now.difference && "differs" in each && each.differs !== null;
    const call = make("section", { class: "box wide" + (wrong ? " bad" : ""), "aria-label": "Operation" }, make("h3", {}, place(each)),
      make("p", { class: "call mono" }, each.call),
      each.outcome ? make("p", {}, "→ ", make("strong", {}, each.outcome), each.rule ? " by " : "", each.rule ? rule(each.rule) : "") : null,
      wrong ? make("p", { class: "differs" }, make("strong", {}, "Here the kernel and the model differ. "), "After this step the slots are not known.") : null,
      ...(each.notes || []).map((note) => make("p", { class: "dim mono" }, note)));
    view.panel.replaceChildren(call,
      make("section", { class: "box", "aria-label": "Memslots" }, make("h3", {}, "Memslots, from the highest gpa down"), slotTable(slots, before, view.palette),
        slots.length > 1 && treeOf(step) && treeOf(step).length === slots.length ? tree(slots, treeOf(step), view.palette) : null),
      make("section", { class: "box", "aria-label": "Touches" }, make("h3", {}, each.touches ? `${each.touches} touches of the guest` : "The guest"), metTable(each)));
    document.getElementById("said").textContent = `Step ${step} of ${now.steps.length - 1}: ${each.call}: ${each.outcome || "done"}. ${slots.length} slots.`;
  }

  // Where we are stands in the address, so that a step can be linked to.
  function go(name, to) {
    const bounded = Math.max(0, Math.min(to, scenarios.get(name).steps.length - 1));
    history.replaceState(null, "", `#s/${encodeURIComponent(name)}` + (to === undefined ? "" : `/${bounded}`));
    arrive();
  }
  function arrive() {
    const [kind, name, at] = location.hash.slice(1).split("/");
    const wanted = kind === "s" ? scenarios.get(decodeURIComponent(name)) : undefined;
    if (!wanted) return;
    const changed = !now || now.name !== wanted.name;
    if (changed) { now = { ...wanted }; show(); }
    const interesting = now.steps.findIndex((each) => now.difference && "differs" in each);
    step = at === undefined ? Math.max(interesting, now.steps.length > 1 && interesting < 0 ? 1 : 0) : Number(at) || 0;
    step = Math.max(0, Math.min(step, now.steps.length - 1));
    showStep();
  }

  for (const kind of ["input", "change"]) document.getElementById("filters").addEventListener(kind, filter);
  document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("list").addEventListener("click", (event) => {
    if (event.target.closest("a") && matchMedia("(max-width: 50rem)").matches) setTimeout(() => main.scrollIntoView(), 0);
  });
  window.addEventListener("hashchange", arrive);
  document.addEventListener("keydown", (event) => {
    if (!now || !now.view || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.target.closest("input, select, textarea")) return;
    const moves = { ArrowLeft: step - 1, ArrowRight: step + 1, Home: 0, End: now.steps.length - 1 };
    if (event.key in moves) { event.preventDefault(); go(now.name, moves[event.key]); }
  });
  filter();
  arrive();
  if (!now) {
    const order = ["differs", "unhealthy", "internal-error", "inconclusive", "known", "passes-now", "passed", "skipped"];
    const first = order.map((kind) => links.find((link) => link.dataset.kind === kind)).find(Boolean);
    if (first) go(first.dataset.name);
  }
})();
