// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How long the guest waited for missing pages, in words.

use host_migrator::paging::{PagingStatus, Waits};

use crate::machine::Status;

/// How many faults took how long: `3 under 64 us, 2 under 8.2 ms`. `None` if there was no fault.
pub(crate) fn words(waits: &[Waits]) -> Option<String> {
    let parts: Vec<String> = (waits.iter())
        .map(|some| format!("{} under {}", some.faults, time(some.below_us)))
        .collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// The same for a guest whose memory comes to this machine while it runs.
pub(crate) fn of_machine(status: &Status) -> Option<String> {
    let paging: Option<&PagingStatus> = match (&status.postcopy, &status.restore) {
        (Some(postcopy), _) => Some(&postcopy.paging),
        (None, Some(restore)) => restore.lazy.as_ref(),
        (None, None) => None,
    };
    let words = words(&paging?.waits)?;
    Some(format!("waits for pages: {words}"))
}

/// So many microseconds.
pub(crate) fn time(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_told_the_shortest_first() {
        assert_eq!(words(&[]), None);
        let waits = [(64, 3), (8192, 2), (1 << 21, 1)];
        let waits = waits.map(|(below_us, faults)| Waits { below_us, faults });
        let told = "3 under 64 us, 2 under 8.2 ms, 1 under 2.1 s";
        assert_eq!(words(&waits).as_deref(), Some(told));
    }
}
