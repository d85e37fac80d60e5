//! From BGP intent to sessions and advertised prefixes of one node.
