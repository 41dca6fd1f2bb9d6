// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the tests of both virtio devices need.

use std::time::{Duration, Instant};

use kvm_ioctls::{Kvm, VmFd};

/// The end of every wait in these tests. Reaching it is a failure.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub const MIB: u64 = 1 << 20;

/// Tries until `attempt` gives something.
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < end, "never came: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A virtual machine with interrupt controllers; `None`, with a word about it, where there is no KVM.
pub fn machine() -> Option<VmFd> {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            println!("skipped: /dev/kvm cannot be used: {error}");
            return None;
        }
    };
    let vm = kvm.create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    Some(vm)
}
