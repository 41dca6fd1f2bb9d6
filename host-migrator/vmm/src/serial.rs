// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The serial console: an 8250 at the PC's first port.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::console_output::ConsoleOutput;

/// The console's first port; the bare guest writes to the same one.
pub const FIRST_PORT: u16 = spec::bare::PORT_CONSOLE;
/// How many ports it has.
pub const PORTS: u16 = 8;
/// Its interrupt.
pub const GSI: u32 = crate::linux::layout::SERIAL_GSI;

/// Where the guest's output goes. It may block: a thread of its own writes the output, so no vCPU waits for it.
pub type Output = Box<dyn Write + Send>;

/// The serial console of a machine.
pub struct Console {
    uart: Mutex<Serial<Interrupt, NoEvents, Switch>>,
    output: Arc<ConsoleOutput>,
    interrupt: EventFd,
}

/// The state of the console for a migration: the registers, and input that the guest has not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    /// Baud divisor low, high, interrupt enable, interrupt identification, line control, line status, modem
    /// control, modem status, scratch.
    registers: [u8; 9],
    input: Vec<u8>,
}

/// The state is impossible.
#[derive(Debug, thiserror::Error)]
#[error("the serial console's state is refused: {0}")]
pub struct ConsoleStateError(String);

impl Console {
    /// A console that writes to `output`.
    ///
    /// # Errors
    /// The system's, if it provides no eventfd for the interrupt or no thread for the output.
    pub fn new(output: Output) -> io::Result<Self> {
        let interrupt = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
        let trigger = Interrupt(interrupt.try_clone()?);
        let output = Arc::new(ConsoleOutput::new(output)?);
        let switch = Switch(Some(Arc::clone(&output)));
        Ok(Self {
            uart: Mutex::new(Serial::new(trigger, switch)),
            output,
            interrupt,
        })
    }

    /// The event that raises interrupt [`GSI`].
    pub fn interrupt(&self) -> &EventFd {
        &self.interrupt
    }

    /// The guest reads the register at `offset` from [`FIRST_PORT`].
    pub fn read(&self, offset: u8) -> u8 {
        self.uart.lock().read(offset)
    }

    /// The guest writes the register at `offset`. Output that cannot be written is dropped.
    pub fn write(&self, offset: u8, value: u8) {
        if let Err(error) = self.uart.lock().write(offset, value) {
            log::debug!("serial console: {error}");
        }
    }

    /// Waits until the guest's output is written, for at most `time`.
    pub fn drain(&self, time: Duration) {
        self.output.drain(time);
    }

    /// Types `input` on the console. Returns how many bytes there was room for.
    pub fn type_in(&self, input: &[u8]) -> usize {
        let mut uart = self.uart.lock();
        let room = uart.fifo_capacity().min(input.len());
        uart.enqueue_raw_bytes(&input[..room]).unwrap_or(0)
    }

    /// The state, for a migration.
    pub fn save(&self) -> ConsoleState {
        let state = self.uart.lock().state();
        ConsoleState {
            registers: [
                state.baud_divisor_low,
                state.baud_divisor_high,
                state.interrupt_enable,
                state.interrupt_identification,
                state.line_control,
                state.line_status,
                state.modem_control,
                state.modem_status,
                state.scratch,
            ],
            input: state.in_buffer,
        }
    }

    /// Loads the state of another console.
    ///
    /// # Errors
    /// [`ConsoleStateError`] if the state is impossible.
    pub fn load(&self, state: &ConsoleState) -> Result<(), ConsoleStateError> {
        let refused = |error: &dyn fmt::Display| ConsoleStateError(error.to_string());
        let r = state.registers;
        let registers = SerialState {
            baud_divisor_low: r[0],
            baud_divisor_high: r[1],
            interrupt_enable: r[2],
            interrupt_identification: r[3],
            line_control: r[4],
            line_status: r[5],
            modem_control: r[6],
            modem_status: r[7],
            scratch: r[8],
            in_buffer: state.input.clone(),
        };
        let mut uart = self.uart.lock();
        let trigger = Interrupt(self.interrupt.try_clone().map_err(|e| refused(&e))?);
        // Checked without the output first, so that the output is kept if the state is refused.
        let mut loaded = Serial::from_state(&registers, trigger, NoEvents, Switch(None))
            .map_err(|e| refused(&e))?;
        loaded.writer_mut().0 = uart.writer_mut().0.take();
        *uart = loaded;
        Ok(())
    }
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").finish_non_exhaustive()
    }
}

/// The output, if there is one.
struct Switch(Option<Arc<ConsoleOutput>>);

impl Write for Switch {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(output) = &self.0 {
            output.push(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Sender, channel};

    struct Channel(Sender<u8>);

    impl Write for Channel {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            bytes
                .iter()
                .try_for_each(|b| self.0.send(*b))
                .map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn input_and_registers_go_with_the_state_and_output_stays() {
        let source = Console::new(Box::new(io::sink())).unwrap();
        source.write(7, 0x5a);
        assert_eq!(source.type_in(b"hello"), 5);
        let (sender, output) = channel();
        let destination = Console::new(Box::new(Channel(sender))).unwrap();
        destination.load(&source.save()).unwrap();
        assert_eq!(destination.read(7), 0x5a);
        assert_eq!(
            (0..5).map(|_| destination.read(0)).collect::<Vec<_>>(),
            b"hello"
        );
        destination.write(0, b'x');
        assert_eq!(output.recv(), Ok(b'x'));
    }

    #[test]
    fn more_input_than_a_console_holds_is_refused_and_the_output_stays() {
        let (sender, output) = channel();
        let console = Console::new(Box::new(Channel(sender))).unwrap();
        let mut state = console.save();
        state.input = vec![0; 1 << 20];
        assert!(console.load(&state).is_err());
        console.write(0, b'y');
        assert_eq!(output.recv(), Ok(b'y'));
    }
}
