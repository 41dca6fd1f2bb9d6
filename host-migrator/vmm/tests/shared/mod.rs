// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the tests of both virtio devices need.

pub mod registers;

use kvm_ioctls::{Kvm, VmFd};
pub use spec_testing::eventually;

pub const MIB: u64 = 1 << 20;

/// A virtual machine with interrupt controllers. Without KVM, prints that and returns `None`.
pub fn machine() -> Option<VmFd> {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            spec_testing::skipped(format_args!("/dev/kvm cannot be used: {error}"));
            return None;
        }
    };
    let vm = kvm.create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    Some(vm)
}
