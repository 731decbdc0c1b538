//! Host ports of containers.
//!
//! A port that nobody asked for by number comes from the pool, first in, first out; the place in
//! it outlives the server ([`Ports::offset`]), so that a port is not handed to the next container
//! right after a restart. A port asked for by number is refused while another container has it,
//! inside and outside of the pool: the second mapping would never see a connection.

use std::collections::HashSet;

use crate::rotation::Rotation;

/// Why there is no port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// All are in use.
    #[error("port pool is exhausted")]
    Exhausted,
    /// Another mapping has it.
    #[error("port already acquired: {0}")]
    Taken(u16),
    /// The options describe no pool.
    #[error("port_pool: New: invalid port range: startL {start}, size: {size}")]
    Range {
        /// First port.
        start: u32,
        /// How many.
        size: u32,
    },
    /// A number that no port has.
    #[error("port {0} is out of range: ports are 1 to 65535, 0 means any")]
    Number(u32),
}

/// The ports of one instance.
#[derive(Debug)]
pub struct Ports {
    start: u16,
    pool: Rotation,
    /// Taken by number, outside of the pool.
    outside: HashSet<u16>,
}

impl Ports {
    /// A pool of `size` ports from `start` on; `offset` is what [`Ports::offset`] said last.
    ///
    /// # Errors
    /// [`PortError::Range`] if the pool goes beyond the last port, or begins at 0.
    pub fn new(start: u32, size: u32, offset: u32) -> Result<Self, PortError> {
        let range = PortError::Range { start, size };
        if start.saturating_add(size) > u32::from(u16::MAX) || start == 0 {
            return Err(range);
        }
        Ok(Self {
            start: u16::try_from(start).map_err(|_| range)?,
            pool: Rotation::new(size, offset),
            outside: HashSet::new(),
        })
    }

    /// The next port of the pool.
    ///
    /// # Errors
    /// [`PortError::Exhausted`].
    pub fn acquire(&mut self) -> Result<u16, PortError> {
        let index = self.pool.next().ok_or(PortError::Exhausted)?;
        Ok(self
            .start
            .saturating_add(u16::try_from(index).unwrap_or(u16::MAX)))
    }

    /// This very port.
    ///
    /// # Errors
    /// [`PortError::Taken`].
    pub fn take(&mut self, port: u16) -> Result<(), PortError> {
        let free = match self.index(port) {
            Some(index) => self.pool.take(index),
            None => self.outside.insert(port),
        };
        if free {
            Ok(())
        } else {
            Err(PortError::Taken(port))
        }
    }

    /// Gives a port back; nothing happens if it was free.
    pub fn release(&mut self, port: u16) {
        match self.index(port) {
            Some(index) => {
                self.pool.release(index);
            }
            None => {
                self.outside.remove(&port);
            }
        }
    }

    /// Where the pool stands: the distance of its next port from its first. To be kept, and given
    /// to [`Ports::new`] at the next start.
    pub fn offset(&mut self) -> u32 {
        self.pool.head().unwrap_or(0)
    }

    fn index(&self, port: u16) -> Option<u32> {
        let index = u32::from(port.checked_sub(self.start)?);
        (index < self.pool.total()).then_some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_is_first_in_first_out() {
        let mut ports = Ports::new(61001, 3, 0).unwrap();
        assert_eq!(ports.acquire(), Ok(61001));
        ports.release(61001);
        assert_eq!(
            [ports.acquire(), ports.acquire(), ports.acquire()],
            [Ok(61002), Ok(61003), Ok(61001)]
        );
        assert_eq!(
            ports.acquire().unwrap_err().to_string(),
            "port pool is exhausted"
        );
    }

    #[test]
    fn the_head_outlives_a_restart() {
        let mut ports = Ports::new(61001, 4, 0).unwrap();
        ports.acquire().unwrap();
        ports.release(61001);
        let offset = ports.offset();
        let mut ports = Ports::new(61001, 4, offset).unwrap();
        assert_eq!(ports.acquire(), Ok(61002));
        assert_eq!(Ports::new(61001, 4, 17).unwrap().acquire(), Ok(61001));
    }

    #[test]
    fn a_port_by_number_is_handed_out_once() {
        let mut ports = Ports::new(61001, 2, 0).unwrap();
        ports.take(61001).unwrap();
        ports.take(8080).unwrap();
        assert_eq!(
            ports.take(61001).unwrap_err().to_string(),
            "port already acquired: 61001"
        );
        assert_eq!(ports.take(8080), Err(PortError::Taken(8080)));
        assert_eq!(ports.acquire(), Ok(61002));
        assert_eq!(ports.acquire(), Err(PortError::Exhausted));
        ports.release(8080);
        ports.release(8080);
        ports.take(8080).unwrap();
    }

    #[test]
    fn a_pool_beyond_the_last_port_is_refused() {
        assert!(Ports::new(61001, 4534, 0).is_ok());
        assert_eq!(
            Ports::new(61001, 4535, 0).unwrap_err().to_string(),
            "port_pool: New: invalid port range: startL 61001, size: 4535"
        );
        assert!(Ports::new(0, 10, 0).is_err());
        assert!(Ports::new(u32::MAX, 10, 0).is_err());
    }
}
