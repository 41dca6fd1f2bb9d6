// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A small KVM virtual machine monitor that owns the guest being migrated.

pub mod images;
pub mod linux;
pub mod mmio;
pub mod virtio;
