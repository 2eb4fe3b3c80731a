/* Where a service is found, and whose daemon may answer: the rules of shmserve/directories.py and
 * shmserve/service_owner.py, which tests compare with these.
 */

#include "client.h"

#include <errno.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define SYSTEM_RUNTIME "/run/shmserve"

static bool set(char *to, size_t room, const char *format, const char *one, const char *other)
{
    int count = snprintf(to, room, format, one, other);
    return count >= 0 && (size_t)count < room;
}

static const char *variable(const char *name)
{
    const char *value = getenv(name);
    return value != NULL && *value ? value : NULL;
}

static bool is_directory(const char *path)
{
    struct stat found;
    return stat(path, &found) == 0 && S_ISDIR(found.st_mode);
}

/* The folder for temporary files, as Python's tempfile.gettempdir. */
static bool temporary(char *to, size_t room)
{
    const char *places[] = {variable("TMPDIR"), variable("TEMP"), variable("TMP"), "/tmp", "/var/tmp", "/usr/tmp"};
    char here[PATH_ROOM];
    if (getcwd(here, sizeof here) == NULL)
        strcpy(here, "/");
    for (size_t index = 0; index < sizeof places / sizeof *places; index++) {
        const char *place = places[index];
        if (place == NULL || !(*place == '/' ? set(to, room, "%s%s", place, "") : set(to, room, "%s/%s", here, place)))
            continue;
        for (size_t end = strlen(to); end > 1 && to[end - 1] == '/';)
            to[--end] = '\0';
        if (is_directory(to) && access(to, W_OK | X_OK) == 0)
            return true;
    }
    return set(to, room, "%s%s", here, "");
}

static bool user_runtime(char *to, size_t room)
{
    const char *runtime = variable("XDG_RUNTIME_DIR");
    char folder[PATH_ROOM / 2], name[32];
    if (runtime != NULL)
        return set(to, room, "%s/%s", runtime, "shmserve");
    (void)snprintf(name, sizeof name, "shmserve-%u", (unsigned)getuid());
    return temporary(folder, sizeof folder) && set(to, room, "%s/%s", folder, name);
}

/* Without the slashes at its end, which would change its parent. */
static void trim(char *path)
{
    for (size_t end = strlen(path); end > 1 && path[end - 1] == '/';)
        path[--end] = '\0';
}

int find_service(shmserve_client *client)
{
    ServicePlace *place = &client->place;
    const char *chosen = client->runtime_dir != NULL ? client->runtime_dir : variable("SHMSERVE_RUNTIME_DIR");
    bool is_short = true;
    *place = (ServicePlace){.is_named = chosen != NULL};
    if (chosen != NULL)
        is_short = set(place->runtime, sizeof place->runtime, "%s%s", *chosen ? chosen : ".", "");
    else {
        is_short = set(place->directory, sizeof place->directory, SYSTEM_RUNTIME "/%s%s", client->service, "");
        place->is_system = is_directory(place->directory);
        if (place->is_system)
            (void)set(place->runtime, sizeof place->runtime, "%s%s", SYSTEM_RUNTIME, "");
        else
            is_short = user_runtime(place->runtime, sizeof place->runtime);
    }
    trim(place->runtime);
    const char *joint = strcmp(place->runtime, "/") == 0 ? "" : "/";
    if (is_short) {
        is_short = snprintf(place->directory, sizeof place->directory, "%s%s%s", place->runtime, joint,
                            client->service) < (int)sizeof place->directory &&
                   snprintf(place->socket, sizeof place->socket, "%s%s%s/client.sock", place->runtime, joint,
                            client->service) < (int)sizeof place->socket;
    }
    if (!is_short || strlen(place->socket) > SOCKET_PATH_LIMIT)
        return fail(
            client, SHMSERVE_ARGUMENT,
            "%s cannot be the socket of '%s': the path of a Unix socket is %zu bytes long and the kernel takes %d: "
            "choose a shorter runtime directory",
            place->socket, client->service, strlen(place->socket), SOCKET_PATH_LIMIT);
    return SHMSERVE_OK;
}

bool is_owner(const ServicePlace *place, uid_t uid)
{
    for (int index = 0; index < place->owners_count; index++)
        if (place->owners[index] == uid)
            return true;
    return place->owners_count == 0;
}

static void add_owner(ServicePlace *place, uid_t uid)
{
    if (place->owners_count < MOST_OWNERS && (place->owners_count == 0 || !is_owner(place, uid)))
        place->owners[place->owners_count++] = uid;
}

/* A user's number, and the name if it has one. */
static void add_user(Text *text, uid_t uid)
{
    char buffer[4096];
    struct passwd entry, *found = NULL;
    text_add(text, "uid %u", (unsigned)uid);
    if (getpwuid_r(uid, &entry, buffer, sizeof buffer, &found) == 0 && found != NULL)
        text_add(text, " (%s)", entry.pw_name);
}

static int by_number(const void *one, const void *other)
{
    uid_t first = *(const uid_t *)one, second = *(const uid_t *)other;
    return (first > second) - (first < second);
}

/* "WHAT PATH belongs to USER, expected ..."; `does` is the words between path and user. */
static int refuse(shmserve_client *client, const char *what, const char *path, const char *does, uid_t uid)
{
    const ServicePlace *place = &client->place;
    uid_t others[MOST_OWNERS];
    size_t others_count = 0;
    Text text;
    for (int index = 0; index < place->owners_count; index++)
        if (place->owners[index] != 0 && place->owners[index] != geteuid())
            others[others_count++] = place->owners[index];
    qsort(others, others_count, sizeof *others, by_number);
    text_begin(&text, client->text, sizeof client->text);
    text_add(&text, "the %s %s %s ", what, path, does);
    add_user(&text, uid);
    text_add(&text, ", expected ");
    add_user(&text, geteuid());
    for (size_t index = 0; index < others_count; index++) {
        text_add(&text, " or ");
        add_user(&text, others[index]);
    }
    if (geteuid() != 0) {
        text_add(&text, " or ");
        add_user(&text, 0);
    }
    text_add(&text, ": another user can serve any model there. If this is the service that you mean, name its runtime "
                    "directory (runtime_dir or SHMSERVE_RUNTIME_DIR); else have it removed");
    return SHMSERVE_FOREIGN;
}

/* Whether the mode lets other users add to a directory; group root never counts, nor this process's own. */
static bool others_may_change(const struct stat *found, bool own_group_counts)
{
    return (found->st_mode & S_IWOTH) ||
           ((found->st_mode & S_IWGRP) && found->st_gid != 0 && (own_group_counts || found->st_gid != getgid()));
}

static void parent_of(const char *path, char *parent, size_t room)
{
    (void)snprintf(parent, room, "%s", path);
    char *slash = strrchr(parent, '/');
    if (slash == NULL)
        strcpy(parent, ".");
    else if (slash == parent)
        parent[1] = '\0';
    else
        *slash = '\0';
}

/* OK, FOREIGN with its text, or a negative errno. The owners of a link and of its target are both judged. */
static int check_owner(shmserve_client *client, const char *path)
{
    struct stat looks[2];
    if (lstat(path, &looks[0]) != 0 || stat(path, &looks[1]) != 0) {
        int number = errno;
        char parent[sizeof client->place.socket];
        parent_of(path, parent, sizeof parent);
        if ((number == EACCES || number == EPERM) && strcmp(parent, path) != 0 && strcmp(parent, ".") != 0) {
            /* A directory that only its owner may enter: a stranger's. */
            int status = check_owner(client, parent);
            if (status == SHMSERVE_FOREIGN)
                return status;
        }
        return -1000 - number;
    }
    for (int look = 0; look < 2; look++)
        if (!is_owner(&client->place, looks[look].st_uid)) {
            mode_t mode = looks[look].st_mode;
            return refuse(client,
                          S_ISLNK(mode)   ? "link"
                          : S_ISDIR(mode) ? "directory"
                                          : "socket",
                          path, "belongs to", looks[look].st_uid);
        }
    return SHMSERVE_OK;
}

/* The users to whom root has given the system's runtime directory, and this service's in it. */
static int add_installed(ServicePlace *place)
{
    struct stat above, found, own;
    char parent[PATH_ROOM];
    parent_of(place->runtime, parent, sizeof parent);
    if (stat(parent, &above) != 0 || stat(place->runtime, &found) != 0)
        return -1000 - errno;
    if ((above.st_uid != 0 && above.st_uid != geteuid()) || others_may_change(&above, true))
        return SHMSERVE_OK;
    add_owner(place, found.st_uid);
    if (others_may_change(&found, true))
        return SHMSERVE_OK;
    if (stat(place->directory, &own) != 0)
        return -1000 - errno;
    add_owner(place, own.st_uid);
    return SHMSERVE_OK;
}

static int judge(shmserve_client *client)
{
    ServicePlace *place = &client->place;
    place->owners_count = 0;
    if (place->is_named)
        return SHMSERVE_OK;
    add_owner(place, 0);
    add_owner(place, geteuid());
    int status = place->is_system ? add_installed(place) : SHMSERVE_OK;
    const char *directories[] = {place->runtime, place->directory};
    for (int index = 0; status == SHMSERVE_OK && index < 2; index++) {
        struct stat found;
        if ((status = check_owner(client, directories[index])) != SHMSERVE_OK)
            break;
        if (stat(directories[index], &found) != 0)
            return -1000 - errno;
        /* In a sticky directory a user can replace only that user's entries, and what a stranger adds has the
         * stranger's uid. */
        if (others_may_change(&found, place->is_system) && !(found.st_mode & S_ISVTX))
            return fail(
                client, SHMSERVE_FOREIGN,
                "%s has mode %04o, so that other users can replace what is in it: chmod go-w it, or name the runtime "
                "directory (runtime_dir or SHMSERVE_RUNTIME_DIR)",
                directories[index], (unsigned)(found.st_mode & 07777));
    }
    return status == SHMSERVE_OK ? check_owner(client, place->socket) : status;
}

int check_owners(shmserve_client *client)
{
    int status = judge(client);
    return status > -1000 ? status : attach_error(client, -1000 - status, NULL);
}

int check_daemon(shmserve_client *client, int descriptor)
{
    struct ucred peer;
    socklen_t bytes = sizeof peer;
    if (getsockopt(descriptor, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) != 0)
        return attach_error(client, errno, NULL);
    if (!is_owner(&client->place, peer.uid))
        return refuse(client, "daemon at", client->place.socket, "is a process of", peer.uid);
    return SHMSERVE_OK;
}
