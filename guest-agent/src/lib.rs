// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest side of free page hinting: a no_std virtio-balloon driver.
