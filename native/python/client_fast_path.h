/* Interface of client_fast_path.c to module.c. */

#ifndef SHMSERVE_CLIENT_FAST_PATH_H
#define SHMSERVE_CLIENT_FAST_PATH_H

/* Intern the attribute names, once before the first instance; -1 with an exception. */
int client_path_names(void);

#endif
