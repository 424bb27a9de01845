for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const number = (text) => (text === "" ? NaN : Number(text.replaceAll(",", "")));
  const compare = (a, b, sign) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const order = number(a) - number(b);
    return sign * (Number.isNaN(order) ? a.localeCompare(b) : order);
  };
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const rows = [...body.rows].map((row) => [value(row, column), row]);
    rows.sort((a, b) => compare(a[0], b[0], sign)).forEach(([, row]) => body.append(row));
  }));
}
const reveal = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  const details = target && target.closest("details");
  if (details && !details.open) { details.open = true; target.scrollIntoView(); }
};
addEventListener("hashchange", reveal);
reveal();
