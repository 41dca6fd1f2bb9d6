// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's clocks, which go on during the switchover: the paravirtual clock, and the time stamp counter.
//!
//! Both are read together with the host's wall clock. The destination adds the time that has passed since then by its own
//! wall clock. So the guest's wall clock is right at once, however long the guest was stopped. If the hosts' wall clocks
//! differ, the guest gets the difference, but its time never goes backwards.

use std::time::{SystemTime, UNIX_EPOCH};

use kvm_bindings::{KVM_CLOCK_REALTIME, Msrs, kvm_clock_data, kvm_msr_entry};
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

/// The time stamp counter's register.
const IA32_TSC: u32 = 0x10;
/// How often a clock is read, to find a reading that was not interrupted.
const TRIES: usize = 5;

/// The value of a guest's clock at a time of the host's wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// Nanoseconds of the paravirtual clock, or ticks of the time stamp counter.
    pub value: u64,
    /// Nanoseconds since 1970.
    pub realtime: u64,
}

impl Reading {
    /// Reads the paravirtual clock of `vm`.
    ///
    /// # Errors
    /// KVM's.
    pub fn of_clock(vm: &VmFd) -> Result<Self, kvm_ioctls::Error> {
        let mut exact = None;
        let reading = Self::bracketed(|| {
            let clock = vm.get_clock()?;
            if clock.flags & KVM_CLOCK_REALTIME != 0 {
                exact = Some(Self {
                    value: clock.clock,
                    realtime: clock.realtime,
                });
            }
            Ok(clock.clock)
        })?;
        Ok(exact.unwrap_or(reading))
    }

    /// Sets the paravirtual clock of `vm` to the value that it should have now.
    ///
    /// # Errors
    /// KVM's.
    pub fn set_clock(self, vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
        let flags = vm.check_extension_int(Cap::AdjustClock).cast_unsigned();
        let mut clock = kvm_clock_data::default();
        if flags & KVM_CLOCK_REALTIME != 0 {
            // KVM adds the time that has passed since.
            (clock.clock, clock.realtime) = (self.value, self.realtime);
            clock.flags = KVM_CLOCK_REALTIME;
        } else {
            clock.clock = self.after(realtime(), 1_000_000);
        }
        vm.set_clock(&clock)
    }

    /// Reads the time stamp counter of `vcpu`.
    ///
    /// # Errors
    /// KVM's.
    pub fn of_tsc(vcpu: &VcpuFd) -> Result<Self, kvm_ioctls::Error> {
        Self::bracketed(|| {
            let mut msrs = one_msr(0)?;
            match vcpu.get_msrs(&mut msrs)? {
                1 => Ok(msrs.as_slice()[0].data),
                _ => Err(kvm_ioctls::Error::new(libc::ENXIO)),
            }
        })
    }

    /// Sets the time stamp counter of `vcpu`, which ticks at `khz`, to the value that it should have now. KVM synchronises
    /// the counters of vCPUs that are set within a second of each other.
    ///
    /// # Errors
    /// KVM's.
    pub fn set_tsc(self, vcpu: &VcpuFd, khz: u32) -> Result<(), kvm_ioctls::Error> {
        match vcpu.set_msrs(&one_msr(self.after(realtime(), khz.into()))?)? {
            1 => Ok(()),
            _ => Err(kvm_ioctls::Error::new(libc::ENXIO)),
        }
    }

    /// The value at `realtime`, of a clock that ticks at `khz`.
    fn after(self, realtime: u64, khz: u64) -> u64 {
        let passed = realtime.saturating_sub(self.realtime);
        let ticks = u128::from(passed) * u128::from(khz) / 1_000_000;
        // The time stamp counter has 64 bits and wraps.
        self.value.wrapping_add(ticks as u64)
    }

    /// Calls `read` between two readings of the wall clock, a few times, and returns the one whose time is most exact.
    fn bracketed(
        mut read: impl FnMut() -> Result<u64, kvm_ioctls::Error>,
    ) -> Result<Self, kvm_ioctls::Error> {
        let mut best = None;
        for _ in 0..TRIES {
            let before = realtime();
            let value = read()?;
            let took = realtime().saturating_sub(before);
            let reading = Self {
                value,
                realtime: before + took / 2,
            };
            if best.is_none_or(|(least, _)| took < least) {
                best = Some((took, reading));
            }
        }
        let (_, reading) = best.ok_or(kvm_ioctls::Error::new(libc::EINVAL))?;
        Ok(reading)
    }
}

/// Nanoseconds since 1970 by the host's wall clock; 0 before.
fn realtime() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| time.as_nanos() as u64)
}

fn one_msr(data: u64) -> Result<Msrs, kvm_ioctls::Error> {
    let entry = kvm_msr_entry {
        index: IA32_TSC,
        data,
        ..Default::default()
    };
    Msrs::from_entries(&[entry]).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_goes_on_by_the_time_that_has_passed_and_never_back() {
        let reading = Reading {
            value: 1000,
            realtime: 5_000_000_000,
        };
        // Ten minutes of a counter of 2.5 GHz.
        let later = 605_000_000_000;
        assert_eq!(reading.after(later, 2_500_000), 1000 + 600 * 2_500_000_000);
        assert_eq!(reading.after(later, 1_000_000), 1000 + 600_000_000_000);
        // A destination whose wall clock is slow.
        assert_eq!(reading.after(4_000_000_000, 2_500_000), 1000);
        let full = Reading {
            value: u64::MAX,
            ..reading
        };
        assert_eq!(full.after(5_000_000_001, 1_000_000), 0);
    }
}
