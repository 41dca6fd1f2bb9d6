// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! iperf3: what others measure of a link.

use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::BenchError;
use super::arm::Arm;
use super::content::Content;
use super::record::Sample;
use crate::nested::{self, PackageError};

/// How long, in seconds, its server may wait for its client: it ends by itself if this process is killed.
const IDLE_SECONDS: &str = "30";
/// How often a measurement of nothing is repeated.
const MOST_TRIES: u32 = 10;

/// iperf3 over TCP with `channels` streams.
#[derive(Debug)]
pub(super) struct Iperf {
    program: PathBuf,
    channels: u16,
}

impl Iperf {
    /// The machine's own iperf3.
    ///
    /// # Errors
    /// [`PackageError`] if it is not installed.
    pub(super) fn find(channels: u16) -> Result<Self, PackageError> {
        let program = nested::program("iperf3", "iperf3")?;
        Ok(Self { program, channels })
    }

    /// A server for one measurement, which listens.
    fn server(&self, port: &str) -> Result<Server, BenchError> {
        let mut child = Command::new(&self.program)
            .args(["--server", "--one-off", "--forceflush", "--port", port])
            .args(["--bind", "127.0.0.1", "--idle-timeout", IDLE_SECONDS])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(BenchError::io("cannot start iperf3"))?;
        let output = child.stdout.take();
        let server = Server(child);
        let mut said = String::new();
        let Some(mut output) = output.map(BufReader::new) else {
            return Err(failed("its server has no output".into()));
        };
        while output
            .read_line(&mut said)
            .map_err(BenchError::io("cannot read what iperf3 says"))?
            > 0
        {
            if said.contains("listening") {
                // What it says later is in the client's answer. It must find a reader all the same.
                let reader = move || io::copy(&mut output, &mut io::sink());
                let spawned = thread::Builder::new().spawn(reader);
                spawned.map_err(BenchError::io("cannot start a thread"))?;
                return Ok(server);
            }
        }
        Err(failed(format!(
            "its server does not listen: {}",
            said.trim()
        )))
    }
}

impl Arm for Iperf {
    /// The server stops counting when the client says that it is done, which may overtake all of a small content. Such a
    /// measurement says nothing, and is repeated.
    fn run(&self, content: &Content) -> Result<Sample, BenchError> {
        for _ in 0..MOST_TRIES {
            let (bytes, time) = self.measure(content)?;
            if bytes > 0 {
                return Ok(Sample::of_no_memory(time, bytes));
            }
        }
        Err(failed(format!(
            "its server has counted nothing in {MOST_TRIES} tries: take a larger --size"
        )))
    }
}

impl Iperf {
    /// The bytes that its server has counted, and in what time.
    fn measure(&self, content: &Content) -> Result<(u64, Duration), BenchError> {
        let port = free_port().map_err(BenchError::io("cannot find a free port"))?;
        let _server = self.server(&port)?;
        let bytes = content.pages().bytes().to_string();
        let output = Command::new(&self.program)
            .args(["--client", "127.0.0.1", "--port", &port, "--json"])
            .args(["--parallel", &self.channels.to_string(), "--bytes", &bytes])
            .stdin(Stdio::null())
            .output()
            .map_err(BenchError::io("cannot start iperf3"))?;
        let said = String::from_utf8_lossy(&output.stdout);
        let answer: Value = serde_json::from_str(&said).unwrap_or_default();
        if let Some(error) = answer["error"].as_str() {
            return Err(failed(error.to_owned()));
        }
        let received = &answer["end"]["sum_received"];
        match (received["bytes"].as_u64(), received["seconds"].as_f64()) {
            (Some(bytes), Some(seconds)) if seconds > 0.0 => {
                Ok((bytes, Duration::from_secs_f64(seconds)))
            }
            _ => Err(failed("its answer has no rate".into())),
        }
    }
}

/// A server that ends when dropped.
#[derive(Debug)]
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended by itself, unless its client failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port that is free now.
fn free_port() -> io::Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port().to_string())
}

fn failed(said: String) -> BenchError {
    BenchError::Program {
        program: "iperf3",
        said,
    }
}
