// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Links the guest as a program without an operating system at a fixed address.

fn main() {
    let script = format!("{}/link.ld", env!("CARGO_MANIFEST_DIR"));
    println!("cargo::rerun-if-changed=link.ld");
    for argument in ["-nostartfiles", "-nostdlib", "-static", "-no-pie"] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
    println!("cargo::rustc-link-arg-bins=-Wl,-T,{script},--build-id=none");
}
