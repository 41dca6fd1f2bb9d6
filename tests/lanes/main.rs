// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests that start several parts: see README.md beside this folder.

#[cfg(test)]
mod bare;
#[cfg(test)]
mod clauses;
#[cfg(test)]
mod failures;
#[cfg(test)]
mod lab;
#[cfg(all(test, feature = "nested"))]
mod nested;
#[cfg(all(test, feature = "plugged"))]
mod plugged;
#[cfg(test)]
mod traces;
