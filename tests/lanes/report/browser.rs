// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A headless Chromium that is told what to do over pipes (the DevTools protocol).

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::lab::PATIENCE;

/// The program, as Debian calls it.
const CHROMIUM: &str = "chromium";

/// A browser with one page. It ends when dropped.
pub struct Browser {
    child: Child,
    stdin: ChildStdin,
    said: Receiver<Value>,
    /// What the page told without being asked.
    told: VecDeque<Value>,
    number: u64,
    session: Option<String>,
    _profile: TempDir,
}

impl Browser {
    /// Starts Chromium; none if it is not installed.
    pub fn start() -> Option<Self> {
        let found = Command::new("sh")
            .args(["-c", &format!("command -v {CHROMIUM}")])
            .stdout(Stdio::null())
            .status();
        if !found.is_ok_and(|status| status.success()) {
            return None;
        }
        let profile = tempfile::tempdir().expect("a folder");
        let mut child = Command::new("sh")
            // It reads commands from descriptor 3, and answers on 4.
            .args([
                "-c",
                "exec \"$@\" 3<&0 4>&1 < /dev/null > /dev/null 2>&1",
                "sh",
                CHROMIUM,
            ])
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
            ])
            .args([
                "--no-first-run",
                "--remote-debugging-pipe",
                "--window-size=1280,900",
            ])
            .args([
                "--disable-background-networking",
                "--disable-component-update",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("Chromium starts");
        let stdin = child.stdin.take().expect("a pipe");
        let stdout = child.stdout.take().expect("a pipe");
        let mut browser = Self {
            child,
            stdin,
            said: read(stdout),
            told: VecDeque::new(),
            number: 0,
            session: None,
            _profile: profile,
        };
        let page = browser.ask("Target.createTarget", json!({"url": "about:blank"}));
        let attach = json!({"targetId": page["targetId"], "flatten": true});
        let session = browser.ask("Target.attachToTarget", attach);
        browser.session = session["sessionId"].as_str().map(ToOwned::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.ask(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    /// Opens the page at `path`, and waits until it is loaded.
    pub fn open(&mut self, path: &Path) {
        self.told.clear();
        let url = format!("file://{}", path.display());
        self.ask("Page.navigate", json!({ "url": url }));
        while !(self.told.iter()).any(|it| it["method"] == "Page.loadEventFired") {
            self.hear();
        }
    }

    /// The value of a JavaScript expression in the page.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let ask = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.ask("Runtime.evaluate", ask);
        assert!(answer["exceptionDetails"].is_null(), "{answer}");
        answer["result"]["value"].clone()
    }

    /// Presses and releases the Tab key.
    pub fn press_tab(&mut self) {
        for kind in ["keyDown", "keyUp"] {
            let key =
                json!({"type": kind, "key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9});
            self.ask("Input.dispatchKeyEvent", key);
        }
    }

    /// Asks for what `scheme` looks like: `dark` or `light`; and for `media`: `screen` or `print`.
    pub fn looks(&mut self, scheme: &str, media: &str) {
        let feature = json!({"name": "prefers-color-scheme", "value": scheme});
        let ask = json!({"media": media, "features": [feature]});
        self.ask("Emulation.setEmulatedMedia", ask);
    }

    /// Makes the window this wide.
    pub fn resize(&mut self, width: u32) {
        let size = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false});
        self.ask("Emulation.setDeviceMetricsOverride", size);
    }

    /// Messages of the console, exceptions, and what the browser has logged, so far.
    pub fn complaints(&mut self) -> Vec<Value> {
        self.evaluate("0");
        let loud = [
            "Runtime.consoleAPICalled",
            "Runtime.exceptionThrown",
            "Log.entryAdded",
        ];
        let is_loud = |it: &&Value| loud.iter().any(|method| it["method"] == *method);
        self.told.iter().filter(is_loud).cloned().collect()
    }

    /// The addresses that were asked for so far.
    pub fn requests(&mut self) -> Vec<String> {
        let requests = self.told.iter();
        requests
            .filter(|it| it["method"] == "Network.requestWillBeSent")
            .filter_map(|it| it["params"]["request"]["url"].as_str())
            .map(ToOwned::to_owned)
            .collect()
    }

    fn ask(&mut self, method: &str, params: Value) -> Value {
        self.number += 1;
        let number = self.number;
        let mut message = json!({"id": number, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = session.clone().into();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.stdin.write_all(&bytes).expect("Chromium reads");
        loop {
            let said = self.hear();
            if said["id"] == number {
                assert!(said["error"].is_null(), "{method}: {said}");
                return said["result"].clone();
            }
        }
    }

    fn hear(&mut self) -> Value {
        let said = self.said.recv_timeout(PATIENCE).expect("Chromium answers");
        if said["id"].is_null() {
            self.told.push_back(said.clone());
        }
        said
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads messages, each of which ends with a zero.
fn read(stdout: ChildStdout) -> Receiver<Value> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for message in BufReader::new(stdout).split(0) {
            let Ok(message) = message else { return };
            let Ok(value) = serde_json::from_slice(&message) else {
                continue;
            };
            if sender.send(value).is_err() {
                return;
            }
        }
    });
    receiver
}
