// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Two network namespaces with a link between them, for hosts that lose it.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The addresses of the two ends.
const SOURCE: &str = "10.213.7.1";
const DESTINATION: &str = "10.213.7.2";
/// The name of the link, at both ends.
const LINK: &str = "lacuna0";

/// See the module. The namespaces are removed when it is dropped.
pub struct Network {
    names: [String; 2],
}

impl Network {
    /// The address of the destination's end.
    pub const DESTINATION: &str = DESTINATION;

    /// A new network.
    ///
    /// # Errors
    /// A sentence, where that is not allowed.
    pub fn new() -> Result<Self, String> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = |side: &str| format!("lacuna-{}-{number}-{side}", std::process::id());
        let names = [name("s"), name("d")];
        let [source, destination] = &names;
        ip(&["netns", "add", source])?;
        let network = Self {
            names: names.clone(),
        };
        ip(&["netns", "add", destination])?;
        let far = ["peer", "name", LINK, "netns", destination];
        let near = ["-n", source, "link", "add", LINK, "type", "veth"];
        ip(&[&near[..], &far].concat())?;
        for (name, address) in [(source, SOURCE), (destination, DESTINATION)] {
            let address = format!("{address}/24");
            ip(&["-n", name, "address", "add", &address, "dev", LINK])?;
            ip(&["-n", name, "link", "set", LINK, "up"])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        Ok(network)
    }

    /// Starts something at the source's end.
    pub fn at_source<T>(&self, start: impl FnOnce() -> T) -> T {
        within(&self.names[0], start)
    }

    /// Starts something at the destination's end.
    pub fn at_destination<T>(&self, start: impl FnOnce() -> T) -> T {
        within(&self.names[1], start)
    }

    /// Switches the link `on` or off, at the source's end or else at the destination's.
    pub fn set_link(&self, is_source: bool, on: bool) {
        let name = &self.names[usize::from(!is_source)];
        let state = if on { "up" } else { "down" };
        ip(&["-n", name, "link", "set", LINK, state]).expect("the link is switched");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in &self.names {
            // It may not have been made.
            let _ = ip(&["netns", "delete", name]);
        }
    }
}

/// Calls `start` in the namespace `name`. Processes that it starts stay there.
fn within<T>(name: &str, start: impl FnOnce() -> T) -> T {
    let enter = |path: &str| {
        let file = File::open(path).expect("a namespace");
        let kind = Some(LinkNameSpaceType::Network);
        move |()| move_into_link_name_space(file.as_fd(), kind).expect("it is entered")
    };
    let back = enter("/proc/thread-self/ns/net");
    enter(&format!("/run/netns/{name}"))(());
    let started = start();
    back(());
    started
}

fn ip(args: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(args).output();
    let output = output.map_err(|error| format!("ip: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let why = String::from_utf8_lossy(&output.stderr);
            Err(format!("ip {}: {}", args.join(" "), why.trim()))
        }
    }
}
