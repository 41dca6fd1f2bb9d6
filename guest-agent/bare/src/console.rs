// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Prints lines on the serial console, and stops when the guest cannot go on.

use core::fmt;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;

use spec::bare::Event;

use crate::ports;

/// How long a vCPU sleeps each time while another one prints a line.
const NAP: Duration = Duration::from_micros(100);
/// How often it sleeps before it prints anyway.
const MAX_NAPS: u32 = 1000;

/// Prints one line.
macro_rules! println {
    ($($argument:tt)*) => {
        $crate::console::print_line(format_args!($($argument)*))
    };
}
pub(crate) use println;

/// What [`println`] calls. Lines of several vCPUs come one after another.
pub fn print_line(line: fmt::Arguments<'_>) {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    // Another vCPU may have failed in the middle of a line: then mixed lines are better than none.
    let free = (0..MAX_NAPS).any(|_| {
        let free = !TAKEN.swap(true, Ordering::Acquire);
        if !free {
            ports::sleep(NAP);
        }
        free
    });
    // The console never fails.
    let _ = fmt::write(&mut Console, format_args!("{line}\n"));
    if free {
        TAKEN.store(false, Ordering::Release);
    }
}

/// Says why the guest cannot go on, tells the VMM and stops this vCPU.
pub fn fail(reason: fmt::Arguments<'_>) -> ! {
    print_line(reason);
    ports::announce(Event::Failed);
    loop {
        ports::sleep(Duration::from_secs(1));
    }
}

struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(ports::console);
        Ok(())
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    fail(format_args!("bare guest: {info}"))
}
