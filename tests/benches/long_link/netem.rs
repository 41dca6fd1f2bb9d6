// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Delays packets of the loopback device with the kernel's netem (`tc qdisc replace dev lo root netem delay ...`).
//! The request is written by hand (rtnetlink(7)): the outer machine has no `tc` that knows netem.

use std::fs;
use std::io;
use std::time::Duration;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};

const RTM_NEWQDISC: u16 = 36;
/// NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE and NLM_F_CREATE.
const FLAGS: u16 = 0x1 | 0x4 | 0x100 | 0x400;
const TC_H_ROOT: u32 = u32::MAX;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
/// A tick of netem's times, in nanoseconds.
const TICK_NANOS: u128 = 64;
/// How many packets may be delayed: more than the buffers of a connection can hold.
const LIMIT: u32 = 100_000;
/// The header of a netlink message; in an answer an error number follows, 0 or below.
const HEADER_BYTES: usize = 16;

/// Delays each packet of the loopback device by `delay`, so that a round trip takes twice as long.
///
/// # Errors
/// The kernel's, for example if it lacks netem.
pub fn delay_loopback(delay: Duration) -> io::Result<()> {
    let index = fs::read_to_string("/sys/class/net/lo/ifindex")?;
    let index: i32 = index.trim().parse().map_err(io::Error::other)?;
    let ticks = u32::try_from(delay.as_nanos() / TICK_NANOS).map_err(io::Error::other)?;

    // struct tcmsg: family, interface, handle (the kernel's choice), parent, info.
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend([0, TC_H_ROOT, 0].map(u32::to_ne_bytes).concat());
    add_attribute(&mut body, TCA_KIND, b"netem\0");
    // struct tc_netem_qopt: latency, limit, loss, gap, duplicate, jitter.
    let options = [ticks, LIMIT, 0, 0, 0, 0].map(u32::to_ne_bytes).concat();
    add_attribute(&mut body, TCA_OPTIONS, &options);

    let bytes = u32::try_from(HEADER_BYTES + body.len()).map_err(io::Error::other)?;
    let mut message = bytes.to_ne_bytes().to_vec();
    message.extend([RTM_NEWQDISC, FLAGS].map(u16::to_ne_bytes).concat());
    // Sequence number and sender.
    message.extend([0; 8]);
    message.extend(body);

    // Protocol 0, the default, is NETLINK_ROUTE.
    let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    let kernel = SocketAddrNetlink::new(0, 0);
    sendto(&socket, &message, SendFlags::empty(), &kernel)?;
    let mut answer = [0; 4096];
    let (_, bytes) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    let error = answer[..bytes]
        .get(HEADER_BYTES..HEADER_BYTES + 4)
        .and_then(|error| error.try_into().ok())
        .map(i32::from_ne_bytes);
    match error {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => Err(io::Error::other("the kernel's answer is cut")),
    }
}

/// Appends an attribute, padded to whole words.
fn add_attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let bytes = 4 + value.len() as u16;
    message.extend([bytes, kind].map(u16::to_ne_bytes).concat());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}
