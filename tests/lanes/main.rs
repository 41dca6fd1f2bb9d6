// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests that start several parts: see README.md beside this folder.

#[cfg(test)]
mod addresses;
#[cfg(all(test, feature = "nested"))]
#[path = "../shared/against_qemu.rs"]
mod against_qemu;
#[cfg(test)]
mod bare;
#[cfg(test)]
mod cancel;
#[cfg(test)]
mod clause_switches;
#[cfg(test)]
mod clauses;
#[cfg(test)]
mod compression;
mod convergence;
mod dirty_rate;
#[cfg(test)]
mod estimate;
#[cfg(test)]
mod every_step;
#[cfg(test)]
mod failures;
mod file_memory;
#[cfg(test)]
mod files;
#[cfg(test)]
mod halves;
#[cfg(test)]
mod hostile_agent;
#[cfg(test)]
mod lab;
#[cfg(test)]
mod lazy;
#[cfg(test)]
mod life;
#[cfg(test)]
mod local;
#[cfg(test)]
#[path = "../shared/memory_files.rs"]
mod memory_files;
#[cfg(all(test, feature = "nested"))]
mod nested;
#[cfg(test)]
mod network;
#[cfg(all(test, feature = "plugged"))]
mod plugged;
#[cfg(test)]
mod postcopy;
#[cfg(test)]
mod postcopy_commands;
#[cfg(all(test, any(feature = "nested", feature = "plugged")))]
#[path = "../shared/qemu_installation.rs"]
mod qemu_installation;
#[cfg(test)]
mod report;
#[cfg(test)]
mod serve;
mod shape;
#[cfg(test)]
mod taken_back;
#[cfg(test)]
mod tls;
#[cfg(test)]
mod traces;
#[cfg(test)]
mod watching;
