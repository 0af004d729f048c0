"""The same training steps, once per library.

`turns` runs one of the others as a script, under any interpreter that has the library; none but `with_sorix_dist`
imports this package. Each `with_LIBRARY` defines

VERSION: of the library;
Peer(threads, rank, ranks, meeting): one process of it; ranks meet at a path that `meeting` makes;
Peer.prepare(act, **options): a function to be called again and again, of which the time is measured. The act "step"
    takes `workload`, a name, and `path`, a file that `stored` has written, and returns the loss.
"""
