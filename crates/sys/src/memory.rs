//! The C library's allocator: how many heaps it keeps, and giving memory back.
//!
//! Deliberately not here: when to do so, and an allocator of our own (`docs/decisions/2026-11-20-static-glibc.md`).

/// Lets threads share `count` heaps at most. By default there are eight a core, and what one thread freed in its heap
/// serves no other. To be called before threads are made.
pub fn share_heaps(count: u16) {
    // SAFETY: sets a number that the allocator reads when it makes its next heap.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, count.into()) };
}

/// Gives free pages of all heaps back to the kernel. Takes milliseconds, more of a large heap.
pub fn give_back() {
    // SAFETY: locks each heap while it walks it; takes no pointers.
    unsafe { libc::malloc_trim(0) };
}
