//! The fence around raw system calls.
//!
//! Every `unsafe` block of the project lives in this package, or in the shim where
//! libcontainer's contract asks for it. One call per function, `OwnedFd` and `BorrowedFd` in
//! signatures, and each block says which requirement of the callee it meets. What rustix
//! already offers safely is used directly by the other packages, not wrapped again here.
