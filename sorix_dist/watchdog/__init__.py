"""The watchdog: ends all ranks, with a report of each, when one of them died, ended, froze, failed or is late.

Every rank writes what it does to its status page (`status_page`, `watch`). One guard process per host (`guard`) reads
the pages and watches the processes; `diagnosis` decides whether they show a fault. A thread in each rank (`monitor`)
replaces a dead guard. No MPI and no NumPy here: the watchdog runs before either is loaded.
"""
