// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Access to the VMM: I/O ports and the balloon's register window.
#![allow(unsafe_code)]

use core::arch::asm;
use core::ptr::{NonNull, with_exposed_provenance_mut};
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;

use lacuna_balloon_driver::Mmio;
use spec::bare::{Event, MMIO_GPA, PORT_CONSOLE, PORT_EVENT, PORT_SLEEP};

/// Sends a byte to the serial console.
pub fn console(byte: u8) {
    // SAFETY: the console's data register takes any byte and touches no memory.
    unsafe { asm!("out dx, al", in("dx") PORT_CONSOLE, in("al") byte, options(nostack)) }
}

/// Announces `event` to the VMM.
pub fn announce(event: Event) {
    out(PORT_EVENT, event as u32);
}

/// Makes this vCPU sleep. The VMM may wake it early.
pub fn sleep(duration: Duration) {
    out(
        PORT_SLEEP,
        duration.as_micros().try_into().unwrap_or(u32::MAX),
    );
}

/// The window of the virtio-mmio device. May be called once.
pub fn take_window() -> Option<Mmio> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return None;
    }
    let base = NonNull::new(with_exposed_provenance_mut(MMIO_GPA as usize))?;
    // SAFETY: the ABI maps the window there, it is trapped, and it is handed out only once.
    Some(unsafe { Mmio::new(base) })
}

fn out(port: u16, value: u32) {
    // SAFETY: both ports of the ABI take any value and do not access guest memory. The compiler must still assume that
    // all memory is read and written here, because the VMM may do that.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack)) }
}
