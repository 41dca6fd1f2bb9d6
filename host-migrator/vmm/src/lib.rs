// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A small KVM virtual machine monitor that owns the guest being migrated.
//!
//! [`Machine`] is the whole machine: it boots a guest, or waits for one that migrates to it. It gives the engine
//! (`host-migrator`) its memory, its dirty logs, and a way to stop, save and load it. Its parts:
//!
//! | modules | what |
//! |---|---|
//! | [`memory`], [`slots`], [`dirty_log`], [`dirty_ring`] | guest memory, KVM's memory slots, and KVM's two kinds of dirty log |
//! | [`vcpu`], [`kick`], [`throttle`] | the vCPU threads, and how they are stopped and slowed down; `gate` is where they wait, `dirty_limit` slows down those that write much |
//! | [`vcpu_times`], [`kvm_stats`], [`guest_gaps`] | how much of its time the guest got: as this host sees it, and as the bare guest does |
//! | [`boot`], [`bare`], [`linux`], [`cpuid`], [`images`] | how a guest is started |
//! | [`io_bus`], [`mmio`], [`serial`], [`virtio`] | the devices; `console_output` writes the console's output |
//! | [`heartbeat`] | the VMM's own writes to the bare guest's memory |
//! | [`state`], [`xsave`], [`versioned`] | what a migration carries besides memory, and how it is written |
//! | [`description`] | what a guest needs of its machine, compared before its memory is sent |

mod advice;
pub mod bare;
pub mod boot;
mod console_output;
pub mod cpuid;
pub mod description;
mod dirty_limit;
pub mod dirty_log;
pub mod dirty_ring;
pub mod event;
mod gate;
pub mod guest_gaps;
pub mod heartbeat;
pub mod huge_pages;
pub mod images;
pub mod io_bus;
pub mod kick;
pub mod kvm_stats;
pub mod linux;
mod long_mode;
pub mod machine;
pub mod memory;
pub mod mmio;
pub mod own_writes;
pub mod serial;
pub mod slots;
pub mod state;
pub mod status;
pub mod throttle;
pub mod vcpu;
pub mod vcpu_times;
pub mod versioned;
pub mod virtio;
pub mod xsave;

pub use bare::BareWorkload;
pub use boot::{Guest, LinuxGuest};
pub use event::MachineEvent;
pub use io_bus::IoBus;
pub use machine::{DirtyLogKind, Machine, MachineConfig, Outlets, SetupError};
pub use memory::MemoryOptions;
pub use state::GuestKind;
pub use status::GuestStatus;
pub use vcpu_times::{VcpuTimes, VcpuWatch};
