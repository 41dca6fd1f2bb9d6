// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The console's output. A thread of its own writes it, so that no vCPU waits for a reader that does not read.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io, thread};

use parking_lot::{Condvar, Mutex};

use crate::serial::Output;

/// At most this many bytes of output wait for a reader; further output is dropped.
const KEPT: usize = 1 << 20;

/// Takes output without blocking.
#[derive(Debug)]
pub(crate) struct ConsoleOutput(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    bytes: VecDeque<u8>,
    /// Bytes dropped since the last output that was kept.
    dropped: u64,
    /// Whether the thread has taken bytes and is writing them.
    writing: bool,
    /// Whether the output is closed.
    closed: bool,
}

impl ConsoleOutput {
    /// Starts a thread that writes to `output`.
    ///
    /// # Errors
    /// The system's, if the thread cannot be started.
    pub(crate) fn new(output: Output) -> io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let theirs = Arc::clone(&queue);
        thread::Builder::new()
            .name("console".into())
            .spawn(move || theirs.write_to(output))?;
        Ok(Self(queue))
    }

    /// Takes `bytes`, or drops them if too many are waiting.
    pub(crate) fn push(&self, bytes: &[u8]) {
        let mut state = self.0.state.lock();
        if state.dropped > 0 || state.bytes.len() + bytes.len() > KEPT {
            state.dropped += bytes.len() as u64;
        } else {
            state.bytes.extend(bytes);
        }
        drop(state);
        self.0.changed.notify_all();
    }

    /// Waits until all output is written, for at most `time`.
    pub(crate) fn drain(&self, time: Duration) {
        let waits = |state: &mut State| state.writing || !state.bytes.is_empty();
        // A timeout is no error.
        let mut state = self.0.state.lock();
        (self.0.changed).wait_while_for(&mut state, waits, time);
    }
}

impl Drop for ConsoleOutput {
    fn drop(&mut self) {
        self.0.state.lock().closed = true;
        self.0.changed.notify_all();
    }
}

impl Queue {
    /// Writes output until it is closed.
    fn write_to(&self, mut output: Output) {
        loop {
            let mut state = self.state.lock();
            while state.bytes.is_empty() && state.dropped == 0 && !state.closed {
                self.changed.wait(&mut state);
            }
            let mut bytes: Vec<u8> = std::mem::take(&mut state.bytes).into();
            let dropped = std::mem::take(&mut state.dropped);
            if bytes.is_empty() && dropped == 0 {
                return;
            }
            state.writing = true;
            drop(state);
            if dropped > 0 {
                let note =
                    format!("\r\n[{dropped} bytes of the console are lost: nobody read]\r\n");
                bytes.extend(note.bytes());
            }
            if let Err(error) = output.write_all(&bytes).and_then(|()| output.flush()) {
                log::debug!("console output is lost: {error}");
            }
            self.state.lock().writing = false;
            self.changed.notify_all();
        }
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("bytes", &self.bytes.len())
            .field("dropped", &self.dropped)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    const FOR_EVER: Duration = Duration::from_secs(60);

    #[test]
    fn unread_output_is_bounded_and_its_loss_is_reported() {
        let (mut reader, writer) = io::pipe().unwrap();
        let output = ConsoleOutput::new(Box::new(writer)).unwrap();
        // More than the pipe and the queue can hold together.
        let line = [b'x'; 4096];
        for _ in 0..1024 {
            output.push(&line);
        }
        assert!(output.0.state.lock().bytes.len() <= KEPT);
        drop(output);
        let mut read = String::new();
        reader.read_to_string(&mut read).unwrap();
        assert!(read.starts_with("xxxx") && read.contains("are lost"));
        assert!(read.len() < 1024 * line.len());
    }

    #[test]
    fn after_a_drain_all_output_is_written() {
        let (mut reader, writer) = io::pipe().unwrap();
        let output = ConsoleOutput::new(Box::new(writer)).unwrap();
        output.push(b"hello");
        output.drain(FOR_EVER);
        let mut read = [0; 5];
        reader.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"hello");
    }
}
