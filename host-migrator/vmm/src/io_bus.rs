// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Passes the guest's accesses to ports and device memory to the devices.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use spec::bare::{Event, PORT_EVENT, PORT_SLEEP};

use crate::linux::layout;
use crate::mmio::MmioDevice;
use crate::serial::{self, Console};

/// What the vCPU must do after its write to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Sleep.
    Sleep(Duration),
    /// Pass on the guest's announcement.
    Announce(Event),
    /// End, because the guest powers the machine off.
    PowerOff,
    /// End, because the guest resets the machine.
    Reset,
}

/// The devices of a machine. Accesses outside all devices read as all ones, have no effect, and are counted.
pub struct IoBus {
    console: Console,
    devices: Vec<(Range<u64>, Arc<dyn MmioDevice>)>,
    unclaimed: AtomicU64,
}

impl IoBus {
    /// The bus of a machine with `console` and `devices` at their guest-physical addresses.
    pub fn new(console: Console, devices: Vec<(Range<u64>, Arc<dyn MmioDevice>)>) -> Self {
        Self {
            console,
            devices,
            unclaimed: AtomicU64::new(0),
        }
    }

    /// The console.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Accesses outside all devices so far.
    pub fn unclaimed(&self) -> u64 {
        self.unclaimed.load(Ordering::Relaxed)
    }

    /// The guest writes `data` to `port`. A repeated write is a single call.
    pub fn port_write(&self, port: u16, data: &[u8]) -> Option<Request> {
        match port {
            PORT_SLEEP => {
                let micros = last_u32(data)?;
                return Some(Request::Sleep(Duration::from_micros(micros.into())));
            }
            PORT_EVENT => return self.event(last_u32(data)?),
            layout::POWER_OFF_PORT if data == [layout::POWER_OFF_VALUE] => {
                return Some(Request::PowerOff);
            }
            layout::RESET_PORT if data == [layout::RESET_VALUE] => return Some(Request::Reset),
            layout::SLEEP_STATUS_PORT | POST_CODE_PORT => {}
            _ => match console_register(port) {
                Some(register) => data.iter().for_each(|b| self.console.write(register, *b)),
                None => self.count(),
            },
        }
        None
    }

    /// The guest reads `data.len()` bytes from `port`.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        match (port, console_register(port)) {
            // The sleep status, and a keyboard controller that is always ready for the reset command.
            (layout::SLEEP_STATUS_PORT | layout::RESET_PORT, _) => data.fill(0),
            (_, Some(register)) => data.fill_with(|| self.console.read(register)),
            (_, None) => self.count(),
        }
    }

    /// The guest reads device memory.
    pub fn memory_read(&self, address: u64, data: &mut [u8]) {
        match self.device(address) {
            Some((offset, device)) => device.read(offset, data),
            None => {
                data.fill(0xff);
                self.count();
            }
        }
    }

    /// The guest writes device memory.
    pub fn memory_write(&self, address: u64, data: &[u8]) {
        match self.device(address) {
            Some((offset, device)) => device.write(offset, data),
            None => self.count(),
        }
    }

    fn device(&self, address: u64) -> Option<(u64, &dyn MmioDevice)> {
        let (range, device) = self
            .devices
            .iter()
            .find(|(range, _)| range.contains(&address))?;
        Some((address - range.start, &**device))
    }

    fn event(&self, raw: u32) -> Option<Request> {
        let event = [Event::Ready, Event::Failed]
            .into_iter()
            .find(|event| *event as u32 == raw);
        if event.is_none() {
            self.count();
        }
        event.map(Request::Announce)
    }

    fn count(&self) {
        self.unclaimed.fetch_add(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for IoBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let windows: Vec<_> = self.devices.iter().map(|(range, _)| range).collect();
        f.debug_struct("IoBus")
            .field("console", &self.console)
            .field("devices", &windows)
            .field("unclaimed", &self.unclaimed)
            .finish()
    }
}

/// The port for POST codes. Linux also writes to it for a short delay.
const POST_CODE_PORT: u16 = 0x80;

/// The console's register at `port`.
fn console_register(port: u16) -> Option<u8> {
    let register = port.checked_sub(serial::FIRST_PORT)?;
    (register < serial::PORTS).then_some(register as u8)
}

/// The last of the double words that were written; `None` if they were not double words.
fn last_u32(data: &[u8]) -> Option<u32> {
    data.len()
        .is_multiple_of(4)
        .then(|| data.last_chunk())
        .flatten()
        .map(|b| u32::from_le_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Notebook(Mutex<Vec<(u64, Vec<u8>)>>);

    impl MmioDevice for Notebook {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }

        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    fn bus(devices: Vec<(Range<u64>, Arc<dyn MmioDevice>)>) -> IoBus {
        IoBus::new(Console::new(Box::new(std::io::sink())).unwrap(), devices)
    }

    #[test]
    fn a_device_sees_offsets_in_its_window_and_nothing_outside() {
        let device = Arc::new(Notebook::default());
        let bus = bus(vec![(0x1000..0x2000, device.clone())]);
        let mut data = [0; 4];
        bus.memory_read(0x1010, &mut data);
        assert_eq!(data, [0x10; 4]);
        bus.memory_read(0x2000, &mut data);
        assert_eq!(data, [0xff; 4]);
        bus.memory_write(0x1fff, &[7]);
        bus.memory_write(0xfff, &[8]);
        assert_eq!(*device.0.lock().unwrap(), [(0xfff, vec![7])]);
        assert_eq!(bus.unclaimed(), 2);
    }

    #[test]
    fn requests_of_the_guest_are_read_and_odd_ones_ignored() {
        let bus = bus(Vec::new());
        let sleep = Request::Sleep(Duration::from_micros(1000));
        assert_eq!(
            bus.port_write(PORT_SLEEP, &1000u32.to_le_bytes()),
            Some(sleep)
        );
        assert_eq!(bus.port_write(PORT_SLEEP, &[1]), None);
        assert_eq!(bus.port_write(PORT_SLEEP, &[]), None);
        let ready = Some(Request::Announce(Event::Ready));
        assert_eq!(bus.port_write(PORT_EVENT, &1u32.to_le_bytes()), ready);
        assert_eq!(bus.port_write(PORT_EVENT, &77u32.to_le_bytes()), None);
        let off = bus.port_write(layout::POWER_OFF_PORT, &[layout::POWER_OFF_VALUE]);
        assert_eq!(off, Some(Request::PowerOff));
        assert_eq!(bus.port_write(layout::POWER_OFF_PORT, &[0]), None);
        assert_eq!(
            bus.port_write(layout::RESET_PORT, &[0xfe]),
            Some(Request::Reset)
        );
    }

    #[test]
    fn ports_that_are_not_there_read_as_all_ones() {
        let bus = bus(Vec::new());
        let mut data = [0; 4];
        bus.port_read(0xcf8, &mut data);
        assert_eq!((data, bus.unclaimed()), ([0xff; 4], 1));
        bus.port_read(serial::FIRST_PORT + 5, &mut data[..1]);
        assert_eq!(data[0] & 0x60, 0x60, "the console can take output");
    }
}
