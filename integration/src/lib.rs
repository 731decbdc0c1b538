//! The harness of the tests on a real kernel.
