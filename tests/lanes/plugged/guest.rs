// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest with a shell on its console: the test writes a line, and the guest executes it and answers.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process_group};

use super::{PATIENCE, eventually};

/// How many characters of the console are shown when a test fails.
const TAIL: usize = 4000;

/// A running VMM and the shell of its guest (`init.sh`).
#[derive(Debug)]
pub struct Guest {
    vmm: Child,
    /// Programs that serve the VMM, and end with it.
    servants: Vec<Child>,
    input: ChildStdin,
    console: Arc<Console>,
    /// Threads that read the console. They end with the VMM.
    readers: Vec<JoinHandle<()>>,
    /// How much of the console has been evaluated.
    read: usize,
    /// Lines written since the guest booted.
    lines: u32,
}

impl Guest {
    /// Starts a VMM whose guest has its console on standard input and output.
    pub fn start(vmm: &Command) -> Self {
        // The VMM ends with this process, however that ends.
        let mut command = Command::new("setpriv");
        command.arg("--pdeathsig=KILL").arg(vmm.get_program());
        command.args(vmm.get_args());
        for (name, value) in vmm.get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        let mut vmm = command
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the VMM starts");
        let console = Arc::new(Console::default());
        let readers = [
            console.follow(vmm.stdout.take().expect("it is a pipe")),
            console.follow(vmm.stderr.take().expect("it is a pipe")),
        ];
        Self {
            input: vmm.stdin.take().expect("it is a pipe"),
            vmm,
            servants: Vec::new(),
            readers: readers.into(),
            console,
            read: 0,
            lines: 0,
        }
    }

    /// Ends `servant` when the VMM ends.
    pub fn served_by(mut self, servant: Child) -> Self {
        self.servants.push(servant);
        self
    }

    /// Whether the guest has booted.
    pub fn listens(&self) -> bool {
        self.console.lock()[self.read..].contains("[lacuna 0 ")
    }

    /// Waits until the booting guest accepts lines. Its balloon driver is not loaded.
    pub fn wait_for_boot(&mut self) {
        self.lines = 0;
        self.answer();
    }

    /// Makes the guest load its balloon driver.
    pub fn load_driver(&mut self) {
        self.run("insmod /modules/virtio_balloon.ko");
    }

    /// Makes the guest start its agent, with `options`, at the device `port`.
    pub fn start_agent(&mut self, port: &str, options: &str) {
        self.run(&format!(
            "lacuna-agent --port {port} {options} 2> /tmp/agent.log &"
        ));
    }

    /// Ends the guest's agent.
    pub fn stop_agent(&mut self) {
        self.run("kill $! && { wait $!; true; }");
    }

    /// Executes `line` in the guest, which must succeed, and returns its output.
    pub fn run(&mut self, line: &str) -> String {
        self.say(line);
        let (text, status) = self.answer();
        assert_eq!(status, "0", "`{line}` failed in the guest: {text}");
        text
    }

    /// How the VMM ends while the guest executes `line`, and its last line; `None` if the guest answers.
    pub fn end_by(&mut self, line: &str) -> Option<(ExitStatus, String)> {
        self.say(line);
        let mark = format!("[lacuna {} ", self.lines);
        let end = eventually("an answer, or the end of the VMM", || {
            let end = self.vmm.try_wait().expect("it is ours");
            let answered = self.console.lock()[self.read..].contains(&mark);
            (end.is_some() || answered).then_some(end)
        });
        let Some(status) = end else {
            self.answer();
            return None;
        };
        for reader in self.readers.drain(..) {
            reader.join().expect("it does not panic");
        }
        let last = self.console.lock().lines().last().map(str::to_owned);
        Some((status, last.unwrap_or_default()))
    }

    /// Writes `line` without waiting for an answer.
    pub fn say(&mut self, line: &str) {
        self.lines += 1;
        writeln!(self.input, "{line}").expect("the guest listens");
    }

    /// The answer to the last line, and its exit status.
    fn answer(&mut self) -> (String, String) {
        let mark = format!("[lacuna {} ", self.lines);
        let mut text = self.console.wait_for(self.read, &mark, "]");
        self.read += text.len();
        let end = text.rfind(&mark).expect("it was waited for");
        let status = text[end + mark.len()..text.len() - 1].to_owned();
        text.truncate(end);
        (text.replace('\r', ""), status)
    }

    /// A line of the guest's /proc/meminfo, in bytes.
    pub fn memory(&mut self, field: &str) -> u64 {
        let text = self.run("cat /proc/meminfo");
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        line.and_then(|rest| rest.trim_matches([':', ' ', 'k', 'B']).parse::<u64>().ok())
            .unwrap_or_else(|| panic!("no {field} in {text}"))
            * 1024
    }

    /// Makes the guest write `bytes` (whole MiB) to the file `name` in its memory.
    pub fn fill(&mut self, name: &str, bytes: u64) {
        let mib = bytes >> 20;
        self.run(&format!(
            "dd if=/dev/zero of=/tmp/{name} bs=1M count={mib} 2> /dev/null"
        ));
    }

    /// Kills the VMM.
    pub fn kill(mut self) {
        self.kill_group();
        self.vmm.wait().expect("it has ended");
    }

    /// Waits for the end of the VMM.
    pub fn wait_for_end(mut self) -> ExitStatus {
        eventually("the end of the VMM", || {
            self.vmm.try_wait().expect("it is ours")
        })
    }

    /// Whether the VMM still runs.
    pub fn is_up(&mut self) -> bool {
        self.vmm.try_wait().expect("it is ours").is_none()
    }

    fn kill_group(&self) {
        if let Some(group) = Pid::from_raw(self.vmm.id() as i32) {
            // It may have ended by itself.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.kill_group();
        let _ = self.vmm.wait();
        for servant in &mut self.servants {
            // It may have ended by itself.
            let _ = servant.kill();
            let _ = servant.wait();
        }
        if thread::panicking() {
            let text = self.console.lock();
            let start = text.char_indices().rev().nth(TAIL).map_or(0, |(at, _)| at);
            println!("the guest's console:\n{}", &text[start..]);
        }
    }
}

/// The output of the console.
#[derive(Debug, Default)]
struct Console {
    text: Mutex<String>,
    grown: Condvar,
}

impl Console {
    /// Reads `output` to its end.
    fn follow(self: &Arc<Self>, mut output: impl Read + Send + 'static) -> JoinHandle<()> {
        let console = Arc::clone(self);
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                console
                    .lock()
                    .push_str(&String::from_utf8_lossy(&bytes[..count]));
                console.grown.notify_all();
            }
        })
    }

    /// Waits for `mark` followed by `end`, and returns the text from byte `from` up to there.
    fn wait_for(&self, from: usize, mark: &str, end: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut text = self.lock();
        loop {
            let found = text[from..]
                .find(mark)
                .and_then(|at| Some(at + text[from + at..].find(end)? + end.len()));
            if let Some(length) = found {
                return text[from..from + length].to_owned();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the guest does not print '{mark}'");
            text = self
                .grown
                .wait_timeout(text, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, String> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
