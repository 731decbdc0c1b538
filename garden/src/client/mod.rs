//! The client side of the Garden wire API.
