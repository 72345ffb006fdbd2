// Which page is shown, and its theme.

const overview = document.getElementById("overview");
const view = document.getElementById("view");
const content = document.getElementById("content");
let drawn = 0;

/** Show the page that the address names: #/, #/<section>, #/model/<id> or #/task/<id>; any other hash changes nothing. */
async function route(first) {
  if (location.hash && !location.hash.startsWith("#/")) return;
  const [, kind = "", name = ""] = location.hash.split("/").map((part) => decodeURIComponent(part));
  const known = kind === "model" ? models : kind === "task" ? tasks : null;
  const turn = ++drawn;
  if (!known) {
    view.hidden = true;
    overview.hidden = false;
    document.title = "clipbench leaderboard";
    efficiency.draw();
    const heading = document.getElementById(`${kind || "leaderboard"}-heading`);
    if (heading && !(first && !kind)) {
      heading.focus({ preventScroll: true });
      kind ? heading.scrollIntoView() : scrollTo(0, 0);
    }
    return;
  }
  const one = known.find((entry) => entry.id === name);
  const parts = one ? await (kind === "model" ? modelView(one) : taskView(one))
    : [el("h1", { tabindex: "-1" }, `No ${kind} “${name}” on this page`), el("p", {}, el("a", { href: "#/" }, "Back to the leaderboard"))];
  if (turn !== drawn) return; // the reader has gone on
  view.replaceChildren(el("p", { class: "no-print" }, el("a", { href: "#/" }, "‹ Leaderboard")), ...parts);
  overview.hidden = true;
  view.hidden = false;
  document.title = `${one ? one.id : "not found"} · clipbench`;
  view.querySelector("h1").focus({ preventScroll: true });
  scrollTo(0, 0);
}

const toggle = document.getElementById("theme");
function theme(name) {
  document.documentElement.dataset.theme = name;
  toggle.textContent = name === "dark" ? "Light" : "Dark";
  toggle.setAttribute("aria-label", `${toggle.textContent} colours`);
}
const system = matchMedia("(prefers-color-scheme: dark)");
system.addEventListener("change", () => theme(system.matches ? "dark" : "light"));
toggle.addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
theme(system.matches ? "dark" : "light");

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  content.focus();
});
addEventListener("hashchange", () => route(false));
document.documentElement.classList.add("scripted");
route(true);
