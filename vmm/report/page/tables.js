// The slots and touches of one step, as tables, and the tree of slots.
function slotTable(slots, before, palette) {
  const old = new Map(before.map((slot) => [numberOf(slot), slot]));
  const row = (slot, index, kind) =>
    make(
      "tr",
      { class: kind },
      make(
        "td",
        {},
        index,
        " ",
        make("span", { class: "swatch", style: `background:${palette.get(numberOf(slot))}` }),
        `slot ${slot[1]}${slot[0] ? ` of as_id ${slot[0]}` : ""}`,
        kind ? make("span", { class: "change" }, ` ${kind}`) : "",
      ),
      make("td", { class: "mono" }, `${hex(slot[2])}..${hex(slot[2] + slot[3])}`),
      make("td", {}, String(slot[3])),
      make("td", { class: "mono" }, slot[4]),
      make("td", { class: "mono" }, slot[5]),
    );
  const body = make("tbody");
  slots.forEach((slot, index) => {
    const was = old.get(numberOf(slot));
    old.delete(numberOf(slot));
    body.append(
      row(slot, `[${index}]`, !was ? "new" : was.join() === slot.join() ? "" : "changed"),
    );
  });
  for (const slot of old.values()) body.append(row(slot, "", "gone"));
  if (!body.children.length) return make("p", { class: "dim" }, "There is no slot.");
  const head = make(
    "tr",
    {},
    ...["slot", "gpa", "pages", "hva", "flags"].map((name) => make("th", { scope: "col" }, name)),
  );
  return sideways("Table of memslots", make("table", {}, make("thead", {}, head), body));
}

// The kernel's red-black tree of slots by gfn: lower gfns to the left. A knot is
// [parent, is red].
function treeOf(index) {
  if (main.dataset.structure !== "tree") return null;
  for (let at = index; at >= 0; at--) if (now.steps[at].slots) return now.steps[at].knots || null;
  return null;
}
function nodeInWords(slots, knots, at) {
  const [parent, isRed] = knots[at];
  const where = parent < 0 ? "root" : `below slot ${slots[parent][1]}`;
  return `slot ${slots[at][1]}: ${isRed ? "red" : "black"}, ${where}`;
}
function tree(slots, knots, palette) {
  const order = slots
    .map((slot, at) => at)
    .sort((a, b) => slots[a][0] - slots[b][0] || slots[a][2] - slots[b][2]);
  const depth = (at) => (knots[at][0] < 0 ? 0 : 1 + depth(knots[at][0]));
  const wide = 58,
    high = 40,
    deepest = Math.max(...slots.map((slot, at) => depth(at)));
  const x = (at) => order.indexOf(at) * wide + wide / 2,
    y = (at) => depth(at) * high + 18;
  const width = slots.length * wide,
    height = (deepest + 1) * high + 6;
  const svg = draw("svg", {
    width,
    height,
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    "aria-label": slots.map((slot, at) => nodeInWords(slots, knots, at)).join("; "),
  });
  slots.forEach((slot, at) => {
    if (knots[at][0] >= 0)
      svg.append(
        draw("line", {
          class: "branch",
          x1: x(knots[at][0]),
          y1: y(knots[at][0]),
          x2: x(at),
          y2: y(at),
        }),
      );
  });
  slots.forEach((slot, at) => {
    svg.append(
      draw("ellipse", {
        class: knots[at][1] ? "knot red" : "knot",
        cx: x(at),
        cy: y(at),
        rx: 24,
        ry: 13,
        fill: palette.get(numberOf(slot)),
      }),
      draw(
        "text",
        { class: "id", x: x(at), y: y(at) + 3.5, "text-anchor": "middle" },
        String(slot[1]),
      ),
      draw(
        "text",
        { class: "gfn", x: x(at), y: y(at) + 23, "text-anchor": "middle" },
        hex(slot[2]),
      ),
    );
  });
  return make(
    "div",
    { class: "tree" },
    make("h3", {}, "The kernel's tree by gfn"),
    sideways("Tree of slots", svg),
    make(
      "p",
      { class: "dim" },
      "A red-black tree, as the calls make it: thick is black, dashed is red. " +
        "Kernels to 5.16 have the array of the table.",
    ),
  );
}

const ACCESS = { r: "reads", w: "writes", x: "executes", i: "uses" };
const WHAT = { mmio: "MMIO exit: no usable slot", memory: "no exit", stop: "the vCPU stops" };
function metTable(each) {
  if (!each.met || !each.met.length)
    return make("p", { class: "dim" }, "There is no touch to show.");
  const body = make("tbody");
  for (const [as, from, pages, access, what, first] of each.met) {
    const found =
      WHAT[what] ||
      `page${pages > 1 ? `s ${first} to ${first + pages - 1}` : ` ${first}`} of ${what}`;
    const where = pages > 1 ? `${hex(from)}..${hex(from + pages)}` : hex(from);
    body.append(
      make(
        "tr",
        {},
        make("td", { class: "mono" }, where + (as ? " (SMM)" : "")),
        make("td", {}, ACCESS[access]),
        make("td", {}, found),
      ),
    );
  }
  const head = make(
    "tr",
    {},
    ...["gpa", "guest", "meets"].map((name) => make("th", { scope: "col" }, name)),
  );
  return sideways("Table of touches", make("table", {}, make("thead", {}, head), body));
}
