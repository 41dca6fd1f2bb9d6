// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Lines on the serial console, and the end when the guest cannot go on.

use core::fmt;
use core::panic::PanicInfo;
use core::time::Duration;

use spec::bare::Event;

use crate::ports;

/// Prints one line.
macro_rules! println {
    ($($argument:tt)*) => {
        $crate::console::print_line(format_args!($($argument)*))
    };
}
pub(crate) use println;

/// What [`println`] calls.
pub fn print_line(line: fmt::Arguments<'_>) {
    // The console never fails.
    let _ = fmt::write(&mut Console, format_args!("{line}\n"));
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
