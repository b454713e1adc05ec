/*
 * Preloaded by tests/conformance: answers pathconf(_PC_LINK_MAX) for bilayer.
 *
 * The C library knows the largest number of links by the filesystem's magic number and has none for
 * FUSE, which stands for many filesystems; it answers 127 then, and a suite that wants to find the
 * limit has nothing to look for. This is bilayer's (`LINKS_MAX` in src/fs/mod.rs); that it is kept is
 * the filesystem's own doing.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/statfs.h>
#include <unistd.h>

enum { FUSE_MAGIC = 0x65735546, LINKS_MAX = 65000 };

long pathconf(const char *path, int name)
{
    long (*next)(const char *, int) = (long (*)(const char *, int))dlsym(RTLD_NEXT, "pathconf");
    struct statfs about;

    if (name == _PC_LINK_MAX && statfs(path, &about) == 0 && about.f_type == FUSE_MAGIC)
        return LINKS_MAX;
    return next(path, name);
}
