// The table of all runs: a press on a column's name sorts by it, words in the field filter.
(() => {
  const table = document.querySelector("table.rows");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];

  // An empty cell is no number; Number("") would be 0.
  const numberOf = text => (text.trim() === "" ? NaN : Number(text));

  const compare = (first, second) => {
    const a = numberOf(first);
    const b = numberOf(second);
    if (isNaN(a) || isNaN(b)) {
      return first.localeCompare(second, undefined, {numeric: true});
    }
    return a - b;
  };

  const sortBy = column => {
    const head = heads[column];
    const descending = head.getAttribute("aria-sort") === "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const textOf = row => row.cells[column].textContent;
    rows.sort((a, b) => {
      const order = compare(textOf(a), textOf(b));
      return descending ? -order : order;
    });
    body.append(...rows);
  };

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => sortBy(column));
    head.replaceChildren(button);
  });

  const filter = document.getElementById("filter");
  const count = document.getElementById("count");
  const texts = new Map();
  for (const row of rows) {
    const words = [...row.cells].map(cell => cell.textContent);
    texts.set(row, words.join(" ").toLowerCase());
  }

  const show = () => {
    const wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      row.hidden = !wanted.every(word => texts.get(row).includes(word));
    }
    const shown = rows.filter(row => !row.hidden).length;
    count.textContent = `${shown} of ${rows.length} runs`;
  };
  filter.addEventListener("input", show);
  show();
})();
