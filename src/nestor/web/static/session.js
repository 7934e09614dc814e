// Signs this browser in with the link of `nestor page`, and out again.
// The token for changes (CSRF) stays in this variable: no storage, no page text.
"use strict";

(() => {
  const box = document.getElementById("session");
  if (!box || box.dataset.signIn !== "here") return;
  let csrfToken = null;
  let ends = 0;

  // Before anything else: nobody who looks at the address bar or the history sees it.
  function takeLink() {
    const hash = location.hash;
    if (!hash.startsWith("#link=")) return null;
    history.replaceState(null, "", location.pathname);
    return hash.slice("#link=".length);
  }

  function show(kind, text, ...more) {
    box.dataset.kind = kind;
    const line = document.createElement("p");
    line.textContent = text;
    box.replaceChildren(line, ...more);
  }

  function hint() {
    const line = document.createElement("p");
    const command = document.createElement("code");
    command.textContent = "nestor page";
    line.append("To sign in, run ", command, " in a terminal and open the link it prints.");
    return line;
  }

  function signedIn(reply) {
    csrfToken = reply.csrf_token;
    const until = new Date(reply.expires_at);
    const time = until.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Sign out";
    button.addEventListener("click", signOut);
    show("in", `Signed in until ${time}.`, button);
    clearTimeout(ends);
    ends = setTimeout(signedOut, Math.max(0, until - Date.now()), "The session has ended.");
  }

  function signedOut(text) {
    csrfToken = null;
    clearTimeout(ends);
    show("out", text, hint());
  }

  async function call(method, options = {}) {
    const reply = await fetch("/session", {
      method,
      credentials: "same-origin",
      cache: "no-store",
      redirect: "error",
      ...options,
    });
    const body = reply.status === 204 ? {} : await reply.json();
    if (!reply.ok) {
      const wait = Number(reply.headers.get("Retry-After"));
      const when = wait > 0 ? ` Try again in ${wait} s.` : "";
      const error = new Error(`${body.detail}.${when}`);
      error.status = reply.status;
      throw error;
    }
    return body;
  }

  async function signIn(link) {
    show("busy", "Signing in…");
    try {
      signedIn(
        await call("POST", {
          headers: { "Content-Type": "application/json" },
          body: JSON.stringify({ link }),
        }),
      );
    } catch (error) {
      failed("This link did not sign you in", error);
    }
  }

  async function signOut() {
    try {
      await call("DELETE", { headers: { "X-CSRF-Token": csrfToken } });
      signedOut("Signed out.");
    } catch (error) {
      if (error.status === 401) signedOut("The session has ended.");
      else failed("You are still signed in", error);
    }
  }

  async function look() {
    try {
      signedIn(await call("GET"));
    } catch (error) {
      if (error.status === 401) signedOut("Not signed in.");
      else failed("It is not known whether you are signed in", error);
    }
  }

  function failed(what, error) {
    const why = error.status ? error.message : "the stack does not answer; does it run?";
    const said = `${what}: ${why}`;
    show("failed", said, ...(said.includes("nestor page") ? [] : [hint()]));
  }

  function begin() {
    const link = takeLink();
    if (link === null) return false;
    signIn(link);
    return true;
  }

  // A link that is pasted while the page is open only changes the fragment.
  addEventListener("hashchange", begin);
  if (!begin()) look();
})();
