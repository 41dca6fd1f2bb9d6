// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The outer machine: QEMU emulates a processor with SVM, and its serial lines carry the job's output.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{self, Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::standstill::Watch;

/// SVM with nested paging, on the oldest processor that has both and that QEMU knows well.
const CPU: &str = "EPYC,+svm,+npt";
/// One processor. With two, on two threads of QEMU 7.2, a guest whose pages the dirty log write-protects again and
/// again ended in a triple fault within minutes (four of four churning guests; none with QEMU 11.1). With one it did
/// not.
const PROCESSORS: &str = "1";
/// Only errors on the console; stop instead of rebooting; no mitigations, which would only slow the emulation.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 loglevel=4 panic=-1 mitigations=off";
/// What the outer machine's first process writes when the job has ended.
const EXIT_MARK: &str = "lacuna-nested: exit ";
/// QEMU's warning for each feature of the processor model that it does not emulate. None of them is needed.
const FEATURE_WARNING: &str = "warning: TCG doesn't support requested feature";
/// Lines of the console that an error quotes: enough for a panic's reason and stack.
const TAIL_LINES: usize = 100;
/// How often a machine that says nothing is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// How long QEMU may take to end after the end of its output.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// The size of the outer machine, and its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Its memory, in bytes.
    pub memory_bytes: u64,
    /// How long one job may take, boot included.
    pub timeout: Duration,
}

/// A line that the job wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// To its standard output.
    Output(&'a str),
    /// To its standard error (or QEMU to its own).
    Error(&'a str),
}

/// Why there is no exit status.
#[derive(Debug, Error)]
pub enum MachineError {
    /// QEMU did not start.
    #[error("starting QEMU: {0}")]
    Start(#[source] io::Error),
    /// The machine ended before the job.
    #[error("the outer machine stopped before the command ended; its console says:\n{console}")]
    Stopped {
        /// The end of the kernel's messages.
        console: String,
    },
    /// The emulator waits for nothing.
    #[error(
        "the outer machine stands still: its processor waits, and no timer runs; its console says:\n{console}"
    )]
    StandsStill {
        /// The end of the kernel's messages.
        console: String,
    },
    /// The job took too long.
    #[error("the nested lane took more than {} s; its console says:\n{console}", timeout.as_secs())]
    Timeout {
        /// The time.
        timeout: Duration,
        /// The end of the kernel's messages.
        console: String,
    },
}

/// The programs and files of an outer machine.
#[derive(Debug)]
pub struct Machine<'a> {
    /// `qemu-system-x86_64`.
    pub qemu: &'a Path,
    /// `setpriv`, by which QEMU ends when this process ends.
    pub setpriv: &'a Path,
    /// The kernel, an ELF file: QEMU starts it by its PVH entry.
    pub kernel: &'a Path,
    /// The initial ramdisk, job included.
    pub initrd: &'a File,
    /// Where the kernel's messages go: an empty file.
    pub console: File,
}

impl Machine<'_> {
    /// Boots the machine, passes on what the job writes, and returns the job's exit status.
    ///
    /// # Errors
    /// [`MachineError`]. QEMU has ended in any case.
    pub fn run(
        &self,
        settings: &Settings,
        mut on_line: impl FnMut(Line),
    ) -> Result<i32, MachineError> {
        let deadline = Instant::now() + settings.timeout;
        let mut qemu = self.start(settings).map_err(MachineError::Start)?;
        let (sender, lines) = mpsc::channel();
        let output = qemu.0.stdout.take().expect("stdout is piped");
        let errors = qemu.0.stderr.take().expect("stderr is piped");
        send_lines(output, sender.clone(), Source::Output);
        send_lines(errors, sender, Source::Error);

        let mut exit = None;
        let mut watch = Watch::new(qemu.0.id());
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match lines.recv_timeout(left.min(LOOK)) {
                Ok((Source::Output, line)) => match exit_status(&line) {
                    Some(status) => exit = Some(status),
                    None => on_line(Line::Output(&line)),
                },
                Ok((Source::Error, line)) if line.contains(FEATURE_WARNING) => {}
                Ok((Source::Error, line)) => on_line(Line::Error(&line)),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) if watch.stands_still() => {
                    return Err(MachineError::StandsStill {
                        console: self.console_tail(),
                    });
                }
                Err(RecvTimeoutError::Timeout) if left > LOOK => {}
                Err(RecvTimeoutError::Timeout) => {
                    return Err(MachineError::Timeout {
                        timeout: settings.timeout,
                        console: self.console_tail(),
                    });
                }
            }
        }
        qemu.wait(END_TIMEOUT);
        exit.ok_or_else(|| MachineError::Stopped {
            console: self.console_tail(),
        })
    }

    fn start(&self, settings: &Settings) -> io::Result<Qemu> {
        let console = format!("file:{}", path_of(&self.console));
        let child = Command::new(self.setpriv)
            .args(["--pdeathsig", "KILL", "--"])
            .arg(self.qemu)
            .args([
                "-accel",
                "tcg",
                "-cpu",
                CPU,
                "-display",
                "none",
                "-nodefaults",
                "-no-reboot",
            ])
            .args(["-m", &format!("{}K", settings.memory_bytes / 1024)])
            .args(["-smp", PROCESSORS])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(path_of(self.initrd))
            .args(["-append", KERNEL_ARGUMENTS])
            // Its first three serial ports: the kernel's console, the job's output and its errors.
            .args(["-serial", &console])
            .args(["-serial", "file:/dev/stdout", "-serial", "file:/dev/stderr"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        Ok(Qemu(child))
    }

    /// The last lines of the console; nothing if it cannot be read.
    fn console_tail(&self) -> String {
        let mut console = &self.console;
        let mut text = Vec::new();
        // On an error, shows what was read so far.
        let _ = console
            .rewind()
            .and_then(|()| console.read_to_end(&mut text));
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

/// A QEMU process that ends when this is dropped.
struct Qemu(Child);

impl Qemu {
    /// Waits until it ends by itself, for at most `timeout`.
    fn wait(&mut self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        while let Ok(None) = self.0.try_wait()
            && Instant::now() < deadline
        {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[derive(Clone, Copy)]
enum Source {
    Output,
    Error,
}

/// Reads lines until the end, on a thread of its own.
fn send_lines(input: impl Read + Send + 'static, lines: Sender<(Source, String)>, source: Source) {
    thread::spawn(move || {
        let mut input = BufReader::new(input);
        let mut line = Vec::new();
        // A read error ends it like the end of file: QEMU is gone.
        while input
            .read_until(b'\n', &mut line)
            .is_ok_and(|bytes| bytes > 0)
        {
            let text = String::from_utf8_lossy(&line);
            if lines
                .send((source, text.trim_end_matches(['\r', '\n']).to_owned()))
                .is_err()
            {
                return;
            }
            line.clear();
        }
    });
}

fn exit_status(line: &str) -> Option<i32> {
    line.strip_prefix(EXIT_MARK)?.parse().ok()
}

/// A path by which a child process can open `file`, even if the file has no name.
fn path_of(file: &File) -> String {
    format!("/proc/{}/fd/{}", process::id(), file.as_raw_fd())
}
